// The same as convolution.h for one filter a channel: vectors are of channels, weights are [C/16][R][S][16]. A work item is one row of tiles.

template <class N> struct Depthwise {
  static constexpr int ROWS = (N::OH + N::HEIGHT - 1) / N::HEIGHT, ITEMS = ROWS, SCALE = N::POOL ? 2 : 1;
  static constexpr int LOW = N::OH % N::HEIGHT, TILES = N::OW / N::WIDTH, NARROW = N::OW % N::WIDTH;
  static constexpr int HALVES = (N::K + HALF - 1) / HALF, WHOLE = HALVES * HALF / LANES;
  static constexpr bool TAIL = HALVES * HALF % LANES != 0;

  static LT_INLINE void run(const float *x, const float *w, const float *bias, const typename N::A *residual, typename N::Y *y, int begin, int end) {
    x -= N::PH * N::XR + N::PW * N::XP;
    for (int row = begin; row < end; row++) {
      if constexpr (LOW == 0) {
        vectors<N::HEIGHT>(x, w, bias, residual, y, row * N::HEIGHT);
      } else if (row < ROWS - 1) {
        if constexpr (ROWS > 1) vectors<N::HEIGHT>(x, w, bias, residual, y, row * N::HEIGHT);
      } else {
        vectors<LOW>(x, w, bias, residual, y, row * N::HEIGHT);
      }
    }
  }

  template <int HEIGHT> static LT_INLINE void vectors(const float *x, const float *w, const float *bias, const typename N::A *residual, typename N::Y *y, int p) {
    LT_NO_UNROLL
    for (int v = 0; v < WHOLE; v++) columns<LANES, HEIGHT>(x, w, bias, residual, y, p, v * LANES);
    if constexpr (TAIL) columns<HALF, HEIGHT>(x, w, bias, residual, y, p, WHOLE * LANES);
  }

  template <int L, int HEIGHT>
  static LT_INLINE void columns(const float *x, const float *w, const float *bias, const typename N::A *residual, typename N::Y *y, int p, int k) {
    if constexpr (TILES > 0) {
      LT_NO_UNROLL
      for (int t = 0; t < TILES; t++) tile<L, HEIGHT, N::WIDTH>(x, w, bias, residual, y, p, t * N::WIDTH, k);
    }
    if constexpr (NARROW > 0) tile<L, HEIGHT, NARROW>(x, w, bias, residual, y, p, TILES * N::WIDTH, k);
  }

  template <int L, int HEIGHT, int WIDTH>
  static LT_INLINE void tile(const float *x, const float *w, const float *bias, const typename N::A *residual, typename N::Y *y, int p, int q, int k) {
    Vector<L> sums[HEIGHT * WIDTH];
    LT_UNROLL
    for (int i = 0; i < HEIGHT * WIDTH; i++) sums[i] = load<L>(bias + k);
    const float *weights = w + k / 16 * (N::R * N::S * 16) + k % 16;
    x += p * N::SH * N::XR + q * N::SW * N::XP + k;
    if constexpr (N::R * N::S <= 49) {
      taps<L, HEIGHT, WIDTH>(x, weights, sums, Count<N::R * N::S>());
    } else {
      LT_NO_UNROLL
      for (int t = 0; t < N::R * N::S; t++) tap<L, HEIGHT, WIDTH>(x + t / N::S * N::DH * N::XR + t % N::S * N::DW * N::XP, weights + t * 16, sums);
    }
    const typename N::A *added = N::RESIDUAL ? residual + p * N::RR + q * N::RP : residual;
    Epilogue<N, HEIGHT, WIDTH>::template finish<L>(sums, bias, added, y + p / SCALE * N::YR + q / SCALE * N::YP, k);
  }

  template <int L, int HEIGHT, int WIDTH, int... T>
  static LT_INLINE void taps(const float *x, const float *w, Vector<L> (&sums)[HEIGHT * WIDTH], Sequence<T...>) {
    (tap<L, HEIGHT, WIDTH>(x + T / N::S * N::DH * N::XR + T % N::S * N::DW * N::XP, w + T * 16, sums), ...);
  }

  template <int L, int HEIGHT, int WIDTH> static LT_INLINE void tap(const float *x, const float *w, Vector<L> (&sums)[HEIGHT * WIDTH]) {
    const Vector<L> weight = load<L>(w);
    LT_UNROLL
    for (int i = 0; i < HEIGHT * WIDTH; i++) sums[i] += weight * load<L>(x + i / WIDTH * N::SH * N::XR + i % WIDTH * N::SW * N::XP);
  }
};
