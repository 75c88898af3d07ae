// y[p, q, k] = pool(act(bias[k] + residual[p, q, k] + sum over (r, s, c) of x[p SH + r DH - PH, q SW + s DW - PW, c] w[k, r, s, c]))
//
// All sizes are constants of a struct N. Images are NHWC with a border of zeros that covers the padding; weights are [K/16][R][S][C][16].
// A tile of VECTORS vectors of output channels (and half a vector, where that is enough for the last ones) times HEIGHT x WIDTH pixels stays in
// registers; each step reads the weights of one input channel and one number a pixel. SPLIT sums run side by side where a tile is too small to
// hide the latency of an addition. FIXED: each tile has code of its own, which leaves out products with the border: for tiny images.
// A work item is one row of tiles in one group of output channels; the weights of a group stay in the cache from row to row.
// N has a base that says what numbers are: `Real` below, `Pairs` of bf16.h, where C counts pairs of channels, or `Integer` of int8.h, where it
// counts quads.

constexpr int WEIGHT_LANES = 16;

// What follows the sums of a tile: residual, activation, 2x2 max pool, and the stores.
template <class N, int HEIGHT, int WIDTH> struct Epilogue {
  typedef typename N::A A;
  typedef typename N::Y Y;
  static constexpr int PIXELS = HEIGHT * WIDTH;

  template <int L> static LT_INLINE void finish(Vector<L> (&sums)[HEIGHT * WIDTH], const float *, const A *residual, Y *y, int k) {
    LT_UNROLL
    for (int p = 0; p < PIXELS; p++) {
      if constexpr (N::RESIDUAL) sums[p] += read<L>(residual + p / WIDTH * N::RR + p % WIDTH * N::RP + k, k);
      sums[p] = N::act(sums[p]);
    }
    if constexpr (N::POOL) {
      LT_UNROLL
      for (int p = 0; p < PIXELS / 4; p++) {
        const int i = p / (WIDTH / 2), j = p % (WIDTH / 2), at = 2 * i * WIDTH + 2 * j;
        write<L>(y + i * N::YR + j * N::YP + k, larger(larger(sums[at], sums[at + 1]), larger(sums[at + WIDTH], sums[at + WIDTH + 1])), k);
      }
    } else {
      LT_UNROLL
      for (int p = 0; p < PIXELS; p++) write<L>(y + p / WIDTH * N::YR + p % WIDTH * N::YP + k, sums[p], k);
    }
  }

  template <int L> static constexpr int COMPUTED = (N::K + L - 1) / L * L;
  template <int L> static constexpr int SPACE = N::LIMIT - COMPUTED<L> + L;  // channels of the last vector and behind it that are the pixel's

  template <int L> static LT_INLINE Vector<L> read(const A *from, int k) {
    if (SPACE<L> >= L || k + L < COMPUTED<L>) return load<L>(from);
    A part[L] = {};
    memcpy(part, from, (SPACE<L> < L ? SPACE<L> : L) * sizeof(A));
    return load<L>(part);
  }

  // Channels k, k + 1, ... of a pixel; those from K to LIMIT become zero, and from LIMIT on nothing is written.
  template <int L> static LT_INLINE void write(Y *y, Vector<L> sums, int k) {
    if ((SPACE<L> == L && COMPUTED<L> == N::K) || k + L < COMPUTED<L>) {
      store<L>(y, sums);
      return;
    }
    if constexpr (COMPUTED<L> > N::K) {  // they are not zero where act(0) is not, and where an infinity was multiplied by their weights, zeros
      Ints<L> kept = {};
      LT_UNROLL
      for (int i = 0; i < L - COMPUTED<L> + N::K; i++) kept[i] = -1;
      sums = as_bits<Vector<L>>(Ints<L>(as_bits<Ints<L>>(sums) & kept));
    }
    store<L, (SPACE<L> < L ? SPACE<L> : L)>(y, sums);
    if constexpr (SPACE<L> > L) memset(y + L, 0, (SPACE<L> - L) * sizeof(Y));
  }
};

struct Real {
  typedef float X, A, Y;  // what images consist of: the input, what is added, the output
  static constexpr int STEP = 1, SMALL = 0;  // numbers of X to the next channel, or quad of channels
  template <int L> using Sum = Vector<L>;
  template <class N, int HEIGHT, int WIDTH> using Finish = Epilogue<N, HEIGHT, WIDTH>;
  template <int L> static LT_INLINE Vector<L> weights(const float *from) { return load<L>(from); }
  template <class N, int L> static LT_INLINE Vector<L> start(const float *bias) { return load<L>(bias); }
  template <int> static LT_INLINE float value(const float *x) { return *x; }
  template <bool, int L, class V> static LT_INLINE void add(Vector<L> &sum, const Vector<L> &w, const V &x) { sum += w * x; }
};

template <class N, int VECTORS, bool TAIL, int HEIGHT, int WIDTH, int P0, int Q0> struct Tile {
  typedef typename N::X X;
  typedef typename N::A A;
  typedef typename N::Y Y;
  template <int L> using Sum = typename N::template Sum<L>;
  static constexpr int PIXELS = HEIGHT * WIDTH, ALL = VECTORS ? VECTORS : 1;
  struct Sums {
    Sum<LANES> full[ALL][PIXELS];
    Sum<HALF> tail[PIXELS];
  };

  static LT_INLINE const float *lane(const float *w, int k) { return w + k / WEIGHT_LANES * (N::R * N::S * N::C * WEIGHT_LANES) + k % WEIGHT_LANES; }

  static constexpr bool inside(int p, int r, int s) {
    const int row = (P0 + p / WIDTH) * N::SH + r * N::DH - N::PH, column = (Q0 + p % WIDTH) * N::SW + s * N::DW - N::PW;
    return P0 < 0 || (row >= 0 && row < N::H && column >= 0 && column < N::W);
  }

  // Tap (r, s) reads anything but the border.
  static constexpr bool any(int r, int s) {
    for (int p = 0; p < PIXELS; p++) {
      if (inside(p, r, s)) return true;
    }
    return false;
  }

  // `x`: what tap (0, 0) of the first pixel reads; `w`: of all channels; `residual` and `y`: the first pixel; k0: the first channel of the tile.
  static LT_INLINE void run(const X *x, const float *w, const float *bias, const A *residual, Y *y, int k0) {
    Sums sums[N::SPLIT];
    LT_UNROLL
    for (int u = 0; u < N::SPLIT; u++) {
      LT_UNROLL
      for (int p = 0; p < PIXELS; p++) {
        LT_UNROLL
        for (int v = 0; v < VECTORS; v++) sums[u].full[v][p] = u || !N::BIAS ? Sum<LANES>{} : N::template start<N, LANES>(bias + k0 + v * LANES);
        if constexpr (TAIL) sums[u].tail[p] = u || !N::BIAS ? Sum<HALF>{} : N::template start<N, HALF>(bias + k0 + VECTORS * LANES);
      }
    }
    const float *first = lane(w, k0);
    if constexpr (P0 >= 0 || N::R * N::S * N::C <= 32) {
      taps(x, first, sums, Count<N::R * N::S>());
    } else {
      LT_NO_UNROLL
      for (int r = 0; r < N::R; r++) {
        LT_NO_UNROLL
        for (int s = 0; s < N::S; s++) {
          channels<0, 0>(x + r * N::DH * N::XR + s * N::DW * N::XP, first + (r * N::S + s) * N::C * WEIGHT_LANES, sums);
        }
      }
    }
    LT_UNROLL
    for (int u = 1; u < N::SPLIT; u++) {
      LT_UNROLL
      for (int p = 0; p < PIXELS; p++) {
        LT_UNROLL
        for (int v = 0; v < VECTORS; v++) sums[0].full[v][p] += sums[u].full[v][p];
        if constexpr (TAIL) sums[0].tail[p] += sums[u].tail[p];
      }
    }
    LT_UNROLL
    for (int v = 0; v < VECTORS; v++) N::template Finish<N, HEIGHT, WIDTH>::template finish<LANES>(sums[0].full[v], bias, residual, y, k0 + v * LANES);
    if constexpr (TAIL) N::template Finish<N, HEIGHT, WIDTH>::template finish<HALF>(sums[0].tail, bias, residual, y, k0 + VECTORS * LANES);
  }

  template <int... T> static LT_INLINE void taps(const X *x, const float *w, Sums (&sums)[N::SPLIT], Sequence<T...>) {
    (channels<T / N::S, T % N::S>(x + (T / N::S) * N::DH * N::XR + (T % N::S) * N::DW * N::XP, w + T * N::C * WEIGHT_LANES, sums), ...);
  }

  template <int R, int S> static LT_INLINE void channels(const X *x, const float *w, Sums (&sums)[N::SPLIT]) {
    if constexpr (any(R, S)) {
      asm("" : "+r"(x));  // each tap loads its numbers again: kept from the tap before, they would take the registers of sums
      constexpr int EVEN = N::C / N::SPLIT * N::SPLIT;
      if constexpr (N::C <= 4) {
        LT_UNROLL
        for (int c = 0; c < N::C; c++) step<R, S>(x + c * N::STEP, w + c * WEIGHT_LANES, sums[c % N::SPLIT]);
      } else {
        LT_NO_UNROLL
        for (int c = 0; c < EVEN; c += N::SPLIT) {
          LT_UNROLL
          for (int u = 0; u < N::SPLIT; u++) step<R, S>(x + (c + u) * N::STEP, w + (c + u) * WEIGHT_LANES, sums[u]);
        }
        LT_UNROLL
        for (int u = 0; u < N::C - EVEN; u++) step<R, S>(x + (EVEN + u) * N::STEP, w + (EVEN + u) * WEIGHT_LANES, sums[u]);
      }
    }
  }

  template <int R, int S> static LT_INLINE void step(const X *x, const float *w, Sums &sums) {
    decltype(N::template weights<LANES>(w)) full[ALL];
    decltype(N::template weights<HALF>(w)) tail;
    LT_UNROLL
    for (int v = 0; v < VECTORS; v++) full[v] = N::template weights<LANES>(lane(w, v * LANES));
    if constexpr (TAIL) tail = N::template weights<HALF>(lane(w, VECTORS * LANES));
    LT_UNROLL
    for (int p = 0; p < PIXELS; p++) {
      if (inside(p, R, S)) {
        const X *at = x + p / WIDTH * N::SH * N::XR + p % WIDTH * N::SW * N::XP;
        if constexpr (VECTORS > 0) {
          const auto value = N::template value<LANES>(at);
          LT_UNROLL
          for (int v = 0; v < VECTORS; v++) N::template add<N::SMALL, LANES>(sums.full[v][p], full[v], value);
        }
        if constexpr (TAIL) N::template add<N::SMALL, HALF>(sums.tail[p], tail, N::template value<HALF>(at));
      }
    }
  }
};

template <class N> struct Convolution {
  typedef typename N::X X;
  typedef typename N::A A;
  typedef typename N::Y Y;
  static constexpr int ROWS = (N::OH + N::HEIGHT - 1) / N::HEIGHT, SCALE = N::POOL ? 2 : 1;
  static constexpr int LOW = N::OH % N::HEIGHT, TILES = N::OW / N::WIDTH, NARROW = N::OW % N::WIDTH;
  static constexpr int HALVES = (N::K + HALF - 1) / HALF, WHOLE = HALVES * HALF / LANES, FULL = WHOLE / N::VECTORS, REST = WHOLE % N::VECTORS;
  static constexpr bool TAIL = HALVES * HALF % LANES != 0;
  static_assert(FULL == 0 || (FULL == 1 && !REST) || N::VECTORS * LANES % WEIGHT_LANES == 0, "a group starts at a block of weights");
  static constexpr int GROUPS = FULL + (REST || TAIL), ITEMS = GROUPS * ROWS;

  // Items [begin, end) of ITEMS; `x`, `residual` and `y`: pixel (0, 0).
  static LT_INLINE void run(const X *x, const float *w, const float *bias, const A *residual, Y *y, int begin, int end) {
    x -= N::PH * N::XR + N::PW * N::XP;
    for (int item = begin; item < end; item++) {
      const int group = item / ROWS, row = item % ROWS, k0 = group * N::VECTORS * LANES;
      if constexpr (FULL > 0) {
        if (group < FULL) rows<N::VECTORS, false>(x, w, bias, residual, y, k0, row);
      }
      if constexpr (GROUPS > FULL) {
        if (group == FULL) rows<REST, TAIL>(x, w, bias, residual, y, k0, row);
      }
    }
  }

  template <int V, bool T> static LT_INLINE void rows(const X *x, const float *w, const float *bias, const A *residual, Y *y, int k0, int row) {
    if constexpr (N::FIXED) {
      fixed_rows<V, T>(x, w, bias, residual, y, k0, row, Count<ROWS>());
    } else {
      const int p = row * N::HEIGHT;
      if constexpr (LOW == 0) {
        columns<V, T, N::HEIGHT>(x, w, bias, residual, y, k0, p);
      } else if (row < ROWS - 1) {
        if constexpr (ROWS > 1) columns<V, T, N::HEIGHT>(x, w, bias, residual, y, k0, p);
      } else {
        columns<V, T, LOW>(x, w, bias, residual, y, k0, p);
      }
    }
  }

  template <int V, bool T, int HEIGHT>
  static LT_INLINE void columns(const X *x, const float *w, const float *bias, const A *residual, Y *y, int k0, int p) {
    if constexpr (TILES > 0) {
      LT_NO_UNROLL
      for (int t = 0; t < TILES; t++) tile<V, T, HEIGHT, N::WIDTH>(x, w, bias, residual, y, k0, p, t * N::WIDTH);
    }
    if constexpr (NARROW > 0) tile<V, T, HEIGHT, NARROW>(x, w, bias, residual, y, k0, p, TILES * N::WIDTH);
  }

  template <int V, bool T, int... ROW>
  static LT_INLINE void fixed_rows(const X *x, const float *w, const float *bias, const A *residual, Y *y, int k0, int row, Sequence<ROW...>) {
    ((row == ROW ? fixed_columns<V, T, ROW>(x, w, bias, residual, y, k0, Count<TILES + (NARROW > 0)>()) : void()), ...);
  }

  template <int V, bool T, int ROW, int... COLUMN>
  static LT_INLINE void fixed_columns(const X *x, const float *w, const float *bias, const A *residual, Y *y, int k0, Sequence<COLUMN...>) {
    constexpr int P0 = ROW * N::HEIGHT, HEIGHT = P0 + N::HEIGHT <= N::OH ? N::HEIGHT : LOW;
    (tile<V, T, HEIGHT, COLUMN == TILES ? NARROW : N::WIDTH, P0, COLUMN * N::WIDTH>(x, w, bias, residual, y, k0, P0, COLUMN * N::WIDTH), ...);
  }

  template <int V, bool T, int HEIGHT, int WIDTH, int P0 = -1, int Q0 = -1>
  static LT_INLINE void tile(const X *x, const float *w, const float *bias, const A *residual, Y *y, int k0, int p, int q) {
    const A *added = N::RESIDUAL ? residual + p * N::RR + q * N::RP : residual;
    Tile<N, V, T, HEIGHT, WIDTH, P0, Q0>::run(x + p * N::SH * N::XR + q * N::SW * N::XP, w, bias, added,
                                              y + p / SCALE * N::YR + q / SCALE * N::YP, k0);
  }
};

// GROUPS convolutions next to each other, of N::C and N::K channels each.
template <class N, int GROUPS> struct Grouped {
  static constexpr int BLOCKS = (N::K + WEIGHT_LANES - 1) / WEIGHT_LANES, ITEMS = GROUPS * Convolution<N>::ITEMS;
  typedef typename N::X X;
  typedef typename N::A A;
  typedef typename N::Y Y;

  static LT_INLINE void run(const X *x, const float *w, const float *bias, const A *residual, Y *y, int begin, int end) {
    for (int item = begin; item < end; item++) {
      const int g = item / Convolution<N>::ITEMS, inner = item % Convolution<N>::ITEMS;
      Convolution<N>::run(x + g * N::GROUP, w + g * BLOCKS * N::R * N::S * N::C * WEIGHT_LANES, bias + g * BLOCKS * WEIGHT_LANES,
                          N::RESIDUAL ? residual + g * N::K : residual, y + g * N::K, inner, inner + 1);
    }
  }
};
