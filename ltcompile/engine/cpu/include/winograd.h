// A 3x3 convolution with stride 1 by 16 products instead of 36 for each 2x2 outputs (Winograd's F(2x2, 3x3)): y = A' [(G w G') . (B' x B)] A.
//
// BLOCK rows of 2x2 tiles are transformed into 16 planes [tile][channel]; each is multiplied by its weights, [16][K/16][C][16], as a 1x1
// convolution G of a row of tiles; the planes of sums become outputs. Where rows or columns are odd, the last tile is cut, and the border of the
// input is one wider. A work item is one of PARTS parts of the output channels of one block.

template <class N, class G> struct Winograd {
  static constexpr int COLUMNS = (N::OW + 1) / 2, ROWS = (N::OH + 1) / 2, TILES = N::BLOCK * COLUMNS, BLOCKS = (ROWS + N::BLOCK - 1) / N::BLOCK;
  static constexpr int PLANE_X = TILES * G::XP + 16, PLANE_Y = TILES * G::YP + 16;  // 16 more, so that planes are not a power of 2 apart
  static constexpr int WEIGHTS = (N::K + WEIGHT_LANES - 1) / WEIGHT_LANES * N::C * WEIGHT_LANES;
  static constexpr int GROUPS = Convolution<G>::GROUPS, EACH = (GROUPS + N::PARTS - 1) / N::PARTS, ITEMS = BLOCKS * N::PARTS;
  static constexpr int SCALE = N::POOL ? 2 : 1;

  static LT_INLINE void run(const float *x, const float *w, const float *bias, const float *residual, float *y, float *scratch, int begin, int end) {
    float *inputs = scratch, *sums = scratch + 16 * PLANE_X;
    for (int item = begin; item < end; item++) {
      const int block = item / N::PARTS, part = item % N::PARTS, first = block * N::BLOCK;
      const int rows = first + N::BLOCK <= ROWS ? N::BLOCK : ROWS - first;
      const int from = part * EACH, to = from + EACH < GROUPS ? from + EACH : GROUPS;
      if (item == begin || part == 0) transform_inputs(x, inputs, first, rows);
      for (int i = 0; i < 16; i++) Convolution<G>::run(inputs + i * PLANE_X, w + i * WEIGHTS, nullptr, nullptr, sums + i * PLANE_Y, from, to);
      transform_sums(sums, bias, residual, y, first, rows, from * G::VECTORS * LANES, to == GROUPS ? N::K : to * G::VECTORS * LANES);
    }
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

  static LT_INLINE void transform_sums(const float *planes, const float *bias, const float *residual, float *y, int first, int rows, int from, int to) {
    for (int i = 0; i < rows; i++) {
      for (int j = 0; j < COLUMNS; j++) {
        const float *sums = planes + (i * COLUMNS + j) * G::YP;
        const int p = 2 * (first + i), q = 2 * j;
        const float *added = N::RESIDUAL ? residual + p * N::RR + q * N::RP : residual;
        float *out = y + p / SCALE * N::YR + q / SCALE * N::YP;
        if constexpr (N::OH % 2 != 0 && N::OW % 2 != 0) {
          if (p + 1 == N::OH && q + 1 == N::OW) {
            channels<1, 1>(sums, bias, added, out, from, to);
            continue;
          }
        }
        if constexpr (N::OH % 2 != 0) {
          if (p + 1 == N::OH) {
            channels<1, 2>(sums, bias, added, out, from, to);
            continue;
          }
        }
        if constexpr (N::OW % 2 != 0) {
          if (q + 1 == N::OW) {
            channels<2, 1>(sums, bias, added, out, from, to);
            continue;
          }
        }
        channels<2, 2>(sums, bias, added, out, from, to);
      }
    }
  }

  template <int HEIGHT, int WIDTH>
  static LT_INLINE void channels(const float *planes, const float *bias, const float *residual, float *y, int from, int to) {
    int k = from;
    for (; k + LANES <= (to + HALF - 1) / HALF * HALF; k += LANES) transform_sum<LANES, HEIGHT, WIDTH>(planes, bias, residual, y, k);
    if (k < to) transform_sum<HALF, HEIGHT, WIDTH>(planes, bias, residual, y, k);
  }

  template <int L, int HEIGHT, int WIDTH>
  static LT_INLINE void transform_sum(const float *planes, const float *bias, const float *residual, float *y, int k) {
    Vector<L> upper[4], lower[4], sums[HEIGHT * WIDTH];
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
    Epilogue<N, HEIGHT, WIDTH>::template finish<L>(sums, residual, y, k);
  }
};
