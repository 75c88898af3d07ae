// Convolutions by AMX, whose registers are tiles of 16 rows of 64 bytes: one instruction adds the products of 16 pixels and 16 filters over 64 bytes
// of channels, of int8 (a base `Integer`; exact) or of bf16 (`Pairs`).
//
// Weights are [K/16][R][S][CHUNKS DEPTH][16], in numbers of 32 bits: DEPTH rows are a tile of weights as they lie. A tile of pixels is WIDTH outputs
// at even distances in the input. With FLAT, PARTS whole rows are one, as they lie in memory with their borders: what is computed there is not used.
// HEIGHT tiles of pixels times VECTORS tiles of filters are summed at a time. Sums go through memory to what follows them.
// A work item is PARTS rows of COLUMNS outputs in one group of filters. The process has requested the tiles of the system.

template <int T> LT_INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(T)); }
template <int T> LT_INLINE void load_tile(const void *from, long step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step), "i"(T) : "memory");
}
template <int T> LT_INLINE void store_tile(void *to, long step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step), "i"(T) : "memory");
}
template <class X, int SUM, int PIXELS, int WEIGHTS> LT_INLINE void multiply_tiles() {
  if constexpr (sizeof(X) == 1) asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(PIXELS), "i"(WEIGHTS));
  else asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(PIXELS), "i"(WEIGHTS));
}

// Rows and bytes in a row of each tile.
struct TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// The sums of M tiles of pixels times V of filters. Of the registers, the first are sums, the next pixels, and the others weights.
template <class N, int M, int V> struct TileSums {
  typedef typename N::X X;
  static constexpr int PIXELS = N::HEIGHT * N::VECTORS, WEIGHTS = PIXELS + N::HEIGHT, COUNT = 8 - WEIGHTS < N::VECTORS ? 8 - WEIGHTS : N::VECTORS;
  static_assert(COUNT > 0, "there are eight registers");

  // `x`: what tap (0, 0) of each tile's first pixel reads; `to`: its sums with the first 16 filters.
  static LT_INLINE void run(const X *const (&x)[M], const float *w, int32_t *const (&to)[M]) {
    zero(Count<M * V>());
    for (int r = 0; r < N::R; r++) {
      for (int s = 0; s < N::S; s++) {
        const int tap = r * N::DH * N::XR + s * N::DW * N::XP;
        LT_NO_UNROLL
        for (int chunk = 0; chunk < N::CHUNKS; chunk++, w += N::DEPTH * WEIGHT_LANES) step(x, tap + chunk * N::DEPTH * N::STEP, w, Count<M>(), Count<V>());
      }
    }
    store(to, Count<M * V>());
  }

  template <int... T> static LT_INLINE void zero(Sequence<T...>) { (zero_tile<T / V * N::VECTORS + T % V>(), ...); }
  template <int... T> static LT_INLINE void store(int32_t *const (&to)[M], Sequence<T...>) {
    (store_tile<T / V * N::VECTORS + T % V>(to[T / V] + T % V * N::POSITIONS * WEIGHT_LANES, 4 * WEIGHT_LANES), ...);
  }
  template <int... I, int... J> static LT_INLINE void step(const X *const (&x)[M], int offset, const float *w, Sequence<I...> all, Sequence<J...>) {
    (load_tile<PIXELS + I>(x[I] + offset, N::SW * N::XP * (long)sizeof(X)), ...);
    (filters<J>(w + J * (N::R * N::S * N::CHUNKS * N::DEPTH * WEIGHT_LANES), all), ...);
  }
  template <int J, int... I> static LT_INLINE void filters(const float *w, Sequence<I...>) {
    load_tile<WEIGHTS + J % COUNT>(w, 4 * WEIGHT_LANES);
    (multiply_tiles<X, I * N::VECTORS + J, PIXELS + I, WEIGHTS + J % COUNT>(), ...);
  }
};

template <class N> struct Matrix {
  typedef typename N::X X;
  typedef typename N::A A;
  typedef typename N::Y Y;
  static constexpr int SCALE = N::POOL ? 2 : 1, SPANS = N::OH / SCALE * SCALE / N::PARTS, SIDES = N::OW / SCALE * SCALE / N::COLUMNS;
  static constexpr int BLOCKS = (N::K + WEIGHT_LANES - 1) / WEIGHT_LANES, GROUPS = (BLOCKS + N::VECTORS - 1) / N::VECTORS;
  static constexpr int LENGTH = N::FLAT ? N::POSITIONS : N::COLUMNS, EACH = (LENGTH + N::WIDTH - 1) / N::WIDTH, TILES = N::FLAT ? EACH : EACH * N::PARTS;
  static constexpr int ITEMS = GROUPS * SPANS * SIDES;

  static LT_INLINE void run(const X *x, const float *w, const float *bias, const A *residual, Y *y, int begin, int end) {
    TileShapes shapes;
    for (int t = 0; t < 8; t++) shapes.rows[t] = N::WIDTH, shapes.bytes[t] = 64;
    constexpr int HEIGHT = N::HEIGHT, VECTORS = N::VECTORS, PIXELS = HEIGHT * VECTORS;
    for (int t = PIXELS; t < 8; t++) {
      if (t < PIXELS + HEIGHT) shapes.bytes[t] = 4 * N::DEPTH;
      else shapes.rows[t] = N::DEPTH;
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes));
    for (int item = begin; item < end; item++) {
      const int group = item / (SPANS * SIDES), p = item / SIDES % SPANS * N::PARTS, q = item % SIDES * N::COLUMNS, block = group * VECTORS;
      const X *from = x + (p * N::SH - N::PH) * N::XR + (q * N::SW - N::PW) * N::XP;
      const A *added = N::RESIDUAL ? residual + p * N::RR + q * N::RP : residual;
      Y *to = y + p / SCALE * N::YR + q / SCALE * N::YP;
      if (BLOCKS % VECTORS == 0 || group < GROUPS - 1) some<VECTORS>(from, w, bias, added, to, block);
      else some<BLOCKS % VECTORS ? BLOCKS % VECTORS : 1>(from, w, bias, added, to, block);
    }
    asm volatile("tilerelease");
  }

  // V blocks of filters from `block` on.
  template <int V> static LT_INLINE void some(const X *x, const float *w, const float *bias, const A *residual, Y *y, int block) {
    alignas(64) int32_t sums[V * N::POSITIONS * WEIGHT_LANES];
    w += block * (N::R * N::S * N::CHUNKS * N::DEPTH * WEIGHT_LANES);
    constexpr int WHOLE = TILES / N::HEIGHT * N::HEIGHT;
    LT_NO_UNROLL
    for (int tile = 0; tile < WHOLE; tile += N::HEIGHT) tiles<N::HEIGHT, V>(x, w, sums, tile);
    if constexpr (WHOLE < TILES) tiles<TILES - WHOLE, V>(x, w, sums, WHOLE);
    for (int v = 0; v < V; v++) {
      for (int p = 0; p < N::PARTS; p += SCALE) {
        LT_NO_UNROLL
        for (int q = 0; q < N::COLUMNS; q += SCALE) {
          const A *added = N::RESIDUAL ? residual + p * N::RR + q * N::RP : residual;
          finish(sums + (v * N::POSITIONS + p * N::PITCH + q) * WEIGHT_LANES, bias, added, y + p / SCALE * N::YR + q / SCALE * N::YP, (block + v) * WEIGHT_LANES);
        }
      }
    }
  }

  // M tiles of pixels, the first of which is number `tile`; the last of a row ends with the row, and computes some pixels again.
  template <int M, int V> static LT_INLINE void tiles(const X *x, const float *w, int32_t *sums, int tile) {
    const X *from[M];
    int32_t *to[M];
    for (int m = 0; m < M; m++) {
      const int row = (tile + m) / EACH, at = (tile + m) % EACH * N::WIDTH, q = at < LENGTH - N::WIDTH ? at : LENGTH - N::WIDTH;
      from[m] = x + row * N::SH * N::XR + q * N::SW * N::XP;
      to[m] = sums + (row * N::PITCH + q) * WEIGHT_LANES;
    }
    TileSums<N, M, V>::run(from, w, to);
  }

  static LT_INLINE void finish(const int32_t *from, const float *bias, const A *residual, Y *y, int k) {
    typename N::template Sum<WEIGHT_LANES> sums[SCALE * SCALE];
    LT_UNROLL
    for (int i = 0; i < SCALE * SCALE; i++) {
      memcpy(&sums[i], from + (i / SCALE * N::PITCH + i % SCALE) * WEIGHT_LANES, sizeof sums[i]);
      sums[i] += N::template start<N, WEIGHT_LANES>(bias + k);
    }
    N::template Finish<N, SCALE, SCALE>::template finish<WEIGHT_LANES>(sums, bias, residual, y, k);
  }
};
