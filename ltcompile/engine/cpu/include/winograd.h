// A 3x3 convolution with stride 1 by 16 products instead of 36 for each 2x2 outputs (Winograd's F(2x2, 3x3)): y = A' [(G w G') . (B' x B)] A.
//
// BLOCK rows of 2x2 tiles are transformed into 16 planes [tile][channel]; each is multiplied by its weights, [16][K/16][C][16], as a 1x1
// convolution G of a row of tiles; the planes of sums become outputs. Where rows or columns are odd, the last tile is cut, and the border of the
// input is one wider. A work item is one of PARTS parts of the output channels of one block.
//
// A NaN or an infinity would reach all four outputs of its tiles. A block with sums that are not finite is therefore summed again without
// planes of inputs, by the weights from which those in `w` were computed: w0 = U0, w1 = U1 - U2, w2 = U3 along both sides.

template <class N, class G> struct Winograd {
  typedef typename N::A A;
  typedef typename N::Y Y;
  static constexpr int COLUMNS = (N::OW + 1) / 2, ROWS = (N::OH + 1) / 2, TILES = N::BLOCK * COLUMNS, BLOCKS = (ROWS + N::BLOCK - 1) / N::BLOCK;
  static constexpr int PLANE_X = TILES * G::XP + 16, PLANE_Y = TILES * G::YP + 16;  // 16 more, so that planes are not a power of 2 apart
  static constexpr int WEIGHTS = (N::K + WEIGHT_LANES - 1) / WEIGHT_LANES * N::C * WEIGHT_LANES;
  static constexpr int GROUPS = Convolution<G>::GROUPS, EACH = (GROUPS + N::PARTS - 1) / N::PARTS, ITEMS = BLOCKS * N::PARTS;
  static constexpr int SCALE = N::POOL ? 2 : 1;

  static LT_INLINE void run(const float *x, const float *w, const float *bias, const A *residual, Y *y, float *scratch, int begin, int end) {
    float *inputs = scratch, *sums = scratch + 16 * PLANE_X;
    for (int item = begin; item < end; item++) {
      const int block = item / N::PARTS, part = item % N::PARTS, first = block * N::BLOCK;
      const int rows = first + N::BLOCK <= ROWS ? N::BLOCK : ROWS - first;
      const int from = part * EACH, to = from + EACH < GROUPS ? from + EACH : GROUPS;
      if (item == begin || part == 0) transform_inputs(x, inputs, first, rows);
      for (int i = 0; i < 16; i++) Convolution<G>::run(inputs + i * PLANE_X, w + i * WEIGHTS, nullptr, nullptr, sums + i * PLANE_Y, from, to);
      const int k = from * G::VECTORS * LANES, end_k = to == GROUPS ? N::K : to * G::VECTORS * LANES;
      if (!transform_sums<false>(x, w, sums, bias, residual, y, first, rows, k, end_k)) sum_again(x, w, bias, residual, y, first, rows, k, end_k);
    }
  }

  struct Finite {  // zeros, and NaN for numbers that are not finite
    Vector<LANES> full = {};
    Vector<HALF> half = {};
    template <int L> LT_INLINE void add(const Vector<L> &v) {
      if constexpr (L == LANES) full += v * 0.0f;
      else half += v * 0.0f;
    }
    LT_INLINE bool all() const {
      float sum = 0.0f;
      for (int i = 0; i < LANES; i++) sum += full[i] + half[i % HALF];
      return sum == 0.0f;
    }
  };

  static __attribute__((noinline, cold)) void sum_again(const float *x, const float *w, const float *bias, const A *residual, Y *y, int first,
                                                        int rows, int from, int to) {
    transform_sums<true>(x, w, nullptr, bias, residual, y, first, rows, from, to);
  }

  static LT_INLINE void transform_inputs(const float *x, float *planes, int first, int rows) {
    for (int i = 0; i < rows; i++) {
      for (int j = 0; j < COLUMNS; j++) {
        const float *from = x + (2 * (first + i) - N::PH) * N::XR + (2 * j - N::PW) * N::XP;
        float *to = planes + (i * COLUMNS + j) * G::XP;
        int c = 0;
        for (; c + LANES <= (N::C + HALF - 1) / HALF * HALF; c += LANES) transform_input<LANES>(from + c, to + c);
        if (c < N::C) transform_input<HALF>(from + c, to + c);
      }
    }
  }

  template <int L> static LT_INLINE void transform_input(const float *x, float *to) {
    Vector<L> rows[4][4];
    LT_UNROLL
    for (int s = 0; s < 4; s++) {
      const float *at = x + s * N::XP;
      const Vector<L> a = load<L>(at), b = load<L>(at + N::XR), c = load<L>(at + 2 * N::XR), d = load<L>(at + 3 * N::XR);
      rows[0][s] = a - c, rows[1][s] = b + c, rows[2][s] = c - b, rows[3][s] = b - d;
    }
    LT_UNROLL
    for (int r = 0; r < 4; r++) {
      store<L>(to + (4 * r) * PLANE_X, rows[r][0] - rows[r][2]);
      store<L>(to + (4 * r + 1) * PLANE_X, rows[r][1] + rows[r][2]);
      store<L>(to + (4 * r + 2) * PLANE_X, rows[r][2] - rows[r][1]);
      store<L>(to + (4 * r + 3) * PLANE_X, rows[r][1] - rows[r][3]);
    }
  }

  // Whether all sums are finite.
  template <bool DIRECT>
  static LT_INLINE bool transform_sums(const float *x, const float *w, const float *planes, const float *bias, const A *residual, Y *y,
                                       int first, int rows, int from, int to) {
    Finite finite;
    for (int i = 0; i < rows; i++) {
      for (int j = 0; j < COLUMNS; j++) {
        const int p = 2 * (first + i), q = 2 * j;
        const float *sums = DIRECT ? x + (p - N::PH) * N::XR + (q - N::PW) * N::XP : planes + (i * COLUMNS + j) * G::YP;
        const A *added = N::RESIDUAL ? residual + p * N::RR + q * N::RP : residual;
        Y *out = y + p / SCALE * N::YR + q / SCALE * N::YP;
        if constexpr (N::OH % 2 != 0 && N::OW % 2 != 0) {
          if (p + 1 == N::OH && q + 1 == N::OW) {
            channels<DIRECT, 1, 1>(sums, w, bias, added, out, from, to, finite);
            continue;
          }
        }
        if constexpr (N::OH % 2 != 0) {
          if (p + 1 == N::OH) {
            channels<DIRECT, 1, 2>(sums, w, bias, added, out, from, to, finite);
            continue;
          }
        }
        if constexpr (N::OW % 2 != 0) {
          if (q + 1 == N::OW) {
            channels<DIRECT, 2, 1>(sums, w, bias, added, out, from, to, finite);
            continue;
          }
        }
        channels<DIRECT, 2, 2>(sums, w, bias, added, out, from, to, finite);
      }
    }
    return finite.all();
  }

  template <bool DIRECT, int HEIGHT, int WIDTH>
  static LT_INLINE void channels(const float *source, const float *w, const float *bias, const A *residual, Y *y, int from, int to, Finite &finite) {
    int k = from;
    for (; k + LANES <= (to + HALF - 1) / HALF * HALF; k += LANES) tile<DIRECT, LANES, HEIGHT, WIDTH>(source, w, bias, residual, y, k, finite);
    if (k < to) tile<DIRECT, HALF, HEIGHT, WIDTH>(source, w, bias, residual, y, k, finite);
  }

  template <bool DIRECT, int L, int HEIGHT, int WIDTH>
  static LT_INLINE void tile(const float *source, const float *w, const float *bias, const A *residual, Y *y, int k, Finite &finite) {
    Vector<L> sums[HEIGHT * WIDTH];
    if constexpr (DIRECT) {
      sum_directly<L, WIDTH>(source, w + k / WEIGHT_LANES * (N::C * WEIGHT_LANES) + k % WEIGHT_LANES, bias + k, sums, HEIGHT * WIDTH);
    } else {
      transform_sum<L, HEIGHT, WIDTH>(source, bias, k, sums);
      LT_UNROLL
      for (int p = 0; p < HEIGHT * WIDTH; p++) finite.template add<L>(sums[p]);
    }
    Epilogue<N, HEIGHT, WIDTH>::template finish<L>(sums, bias, residual, y, k);
  }

  template <int L, int WIDTH> static void sum_directly(const float *x, const float *w, const float *bias, Vector<L> *sums, int pixels) {
    for (int p = 0; p < pixels; p++) {
      sums[p] = load<L>(bias);
      for (int tap = 0; tap < 9 * N::C; tap++) {
        const int c = tap % N::C, r = tap / N::C / 3, s = tap / N::C % 3;
        const auto column = [&](int i) {
          const float *at = w + 4 * i * WEIGHTS + c * WEIGHT_LANES;
          return s == 1 ? load<L>(at + WEIGHTS) - load<L>(at + 2 * WEIGHTS) : load<L>(at + (s ? 3 : 0) * WEIGHTS);
        };
        sums[p] += (r == 1 ? column(1) - column(2) : column(r ? 3 : 0)) * x[(p / WIDTH + r) * N::XR + (p % WIDTH + s) * N::XP + c];
      }
    }
  }

  template <int L, int HEIGHT, int WIDTH> static LT_INLINE void transform_sum(const float *planes, const float *bias, int k, Vector<L> *sums) {
    Vector<L> upper[4], lower[4];
    LT_UNROLL
    for (int s = 0; s < 4; s++) {
      const float *at = planes + s * PLANE_Y + k;
      const Vector<L> b = load<L>(at + 4 * PLANE_Y), c = load<L>(at + 8 * PLANE_Y);
      upper[s] = load<L>(at) + b + c, lower[s] = b - c - load<L>(at + 12 * PLANE_Y);
    }
    const Vector<L> added = load<L>(bias + k);
    sums[0] = upper[0] + upper[1] + upper[2] + added;
    if constexpr (WIDTH == 2) sums[1] = upper[1] - upper[2] - upper[3] + added;
    if constexpr (HEIGHT == 2) sums[WIDTH] = lower[0] + lower[1] + lower[2] + added;
    if constexpr (HEIGHT == 2 && WIDTH == 2) sums[3] = lower[1] - lower[2] - lower[3] + added;
  }
};
