// Unsigned activations of eight bits with scale and zero point, int8 weights, sums in int32. See ltcompile/lower/integer.py for what is computed.
//
// A step of a convolution is over a quad: four input channels, whose bytes are one number of 32 bits; weights are [K/16][R][S][C/4][16][4]. `bias`
// holds SEGMENT sums to begin with, SEGMENT factors, and SEGMENT corrections for processors that multiply signed bytes alone (x - 128).
// Products in float32 are never contracted with sums, so that all processors round alike.

#if defined(__x86_64__) && defined(__AVX512F__)
#define LT_REGISTER "v"
#elif defined(__x86_64__)
#define LT_REGISTER "x"
#elif defined(__aarch64__)
#define LT_REGISTER "w"
#else
#define LT_REGISTER "m"
#endif
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int32_t SIGNS = (int32_t)0x80808080u;
#else
constexpr int32_t SIGNS = 0;
#endif

template <int L> using Bytes = typename NumbersOf<uint8_t, L>::Type;

template <int L> LT_INLINE Bytes<L> load(const uint8_t *from) {
  Bytes<L> v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <int L> LT_INLINE void store(uint8_t *to, const Bytes<L> &v) { memcpy(to, &v, sizeof v); }

// v, which is not contracted with what follows.
template <class V> LT_INLINE V exact(V v) {
  asm("" : "+" LT_REGISTER(v));
  return v;
}

template <class V> LT_INLINE V between(const V &v, int32_t low, int32_t high) {
  const V least = V{} + low, most = V{} + high, raised = v < least ? least : v;
  return raised > most ? most : raised;
}

template <int L> LT_INLINE Vector<L> real(const Ints<L> &v) {
  if constexpr (L == 1) return (float)v;
  else return __builtin_convertvector(v, Vector<L>);
}

// To the nearest integer, ties to even; |v| is below 2^30.
template <int L> LT_INLINE Ints<L> rounded(const Vector<L> &v) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (L == LANES || L == HALF) {
    Ints<L> whole;
    asm("vcvtps2dq %1, %0" : "=" LT_REGISTER(whole) : LT_REGISTER(v));
    return whole;
  }
#elif defined(__aarch64__)
  if constexpr (L == LANES) {
    Ints<L> whole;
    asm("fcvtns %0.4s, %1.4s" : "=w"(whole) : "w"(v));
    return whole;
  }
#endif
  const Vector<L> most = Vector<L>{} + 1e6f, low = v < -most ? -most : v, bounded = exact(low > most ? most : low);
  const Vector<L> whole = exact(bounded + 12582912.0f) - 12582912.0f;
  if constexpr (L == 1) return (int32_t)whole;
  else return __builtin_convertvector(whole, Ints<L>);
}

// v / scale as an integer in reach of a byte; NaN as the least.
template <int L> LT_INLINE Ints<L> quantized(const Vector<L> &v, float scale, int32_t zero) {
  const Vector<L> most = Vector<L>{} + 1e6f, scaled = v / scale, low = scaled > -most ? scaled : -most;
  return rounded<L>(low < most ? low : most) + zero;
}

template <int L> LT_INLINE Ints<L> widen(const uint8_t *from) {
#if defined(__AVX2__)
  if constexpr (L == LANES || L == HALF) {
    Ints<L> v;
    asm("vpmovzxbd %1, %0" : "=" LT_REGISTER(v) : "m"(*(const uint8_t(*)[L])from));
    return v;
  }
#endif
  if constexpr (L == 1) return *from;
  else return __builtin_convertvector(load<L>(from), Ints<L>);
}

// The first COUNT lanes, as the nearest of 0 ... 255.
template <int L, int COUNT = L> LT_INLINE void narrow(uint8_t *to, const Ints<L> &v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    const Ints<L> positive = v > 0 ? v : Ints<L>{};
    Bytes<L> bytes;
    asm("vpmovusdb %1, %0" : "=v"(bytes) : "v"(positive));
    memcpy(to, &bytes, COUNT);
    return;
  }
#endif
  const Ints<L> held = between(v, 0, 255);
  if constexpr (L == 1) {
    *to = (uint8_t)held;
  } else {
    const Bytes<L> bytes = __builtin_convertvector(held, Bytes<L>);
    memcpy(to, &bytes, COUNT);
  }
}

template <int L> LT_INLINE Ints<L> looked_up(const Ints<L> &at, const float *table) {
  if constexpr (L == 1) {
    return (int32_t)table[at];
  } else {
    Ints<L> found;
    for (int i = 0; i < L; i++) found[i] = (int32_t)table[at[i]];
    return found;
  }
}

template <int L> LT_INLINE Vector<L> looked_up_real(const Ints<L> &at, const float *table) {
  if constexpr (L == 1) {
    return table[at];
  } else {
    Vector<L> found;
    for (int i = 0; i < L; i++) found[i] = table[at[i]];
    return found;
  }
}

// The bytes of each lane at a pixel of its own.
template <int L> LT_INLINE void scatter(uint8_t *to, int step, const Ints<L> &quads) {
  int32_t each[L];
  memcpy(each, &quads, sizeof each);
  for (int i = 0; i < L; i++) memcpy(to + i * step, &each[i], 4);
}

// sum + the products of four bytes of x and of w, lane by lane. SMALL: weights of at most 64, so that two products fit into 16 bits.
template <bool SMALL, int L> LT_INLINE Ints<L> dot(Ints<L> sum, const Ints<L> &x, const Ints<L> &w) {
#if defined(__ARM_FEATURE_DOTPROD)
  asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
  return sum;
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
  return sum;
#elif defined(__AVX2__) && (!defined(__AVX512F__) || defined(__AVX512BW__))
  typedef typename NumbersOf<int16_t, 2 * L>::Type Shorts;
  Ints<L> pairs, more;
  if constexpr (SMALL) {
    asm("vpmaddubsw %2, %1, %0" : "=" LT_REGISTER(pairs) : LT_REGISTER(x), LT_REGISTER(w));
    asm("vpmaddwd %2, %1, %0" : "=" LT_REGISTER(more) : LT_REGISTER(pairs), LT_REGISTER(Shorts{} + 1));
    return sum + more;
  } else {
    const Ints<L> even = x & 0x00ff00ff, odd = (x >> 8) & 0x00ff00ff;
    asm("vpmaddwd %2, %1, %0" : "=" LT_REGISTER(pairs) : LT_REGISTER(even), LT_REGISTER(((Shorts)w << 8) >> 8));
    asm("vpmaddwd %2, %1, %0" : "=" LT_REGISTER(more) : LT_REGISTER(odd), LT_REGISTER((Shorts)w >> 8));
    return sum + pairs + more;
  }
#else
  for (int b = 0; b < 32; b += 8) sum += ((w << (24 - b)) >> 24) * ((x >> b) & 255);
  return sum;
#endif
}

// What follows the sums of a tile: factors, rounding, residual, 2x2 max pool, and the stores.
template <class N, int HEIGHT, int WIDTH> struct Requantize {
  static constexpr int PIXELS = HEIGHT * WIDTH;
  template <int L> static constexpr int SPACE = N::LIMIT - (N::K + L - 1) / L * L + L;  // of the last vector, channels that are the pixel's

  template <int L> static LT_INLINE void finish(Ints<L> (&sums)[HEIGHT * WIDTH], const float *bias, const uint8_t *residual, uint8_t *y, int k) {
    const Vector<L> factor = load<L>(bias + N::SEGMENT + k);
    if constexpr (N::POOL && !N::RESIDUAL) {
      LT_UNROLL
      for (int p = 0; p < PIXELS / 4; p++) {
        const int i = p / (WIDTH / 2), j = p % (WIDTH / 2), at = 2 * i * WIDTH + 2 * j;
        const Ints<L> most = larger(larger(sums[at], sums[at + 1]), larger(sums[at + WIDTH], sums[at + WIDTH + 1]));
        write<L>(y + i * N::YR + j * N::YP + k, rescaled<L>(most, factor), k);
      }
      return;
    }
    LT_UNROLL
    for (int p = 0; p < PIXELS; p++) {
      sums[p] = rescaled<L>(sums[p], factor);
      if constexpr (N::RESIDUAL) {
        const Ints<L> added = widen<L>(residual + p / WIDTH * N::RR + p % WIDTH * N::RP + k);
        const Vector<L> a = exact(real<L>(sums[p] - (int32_t)N::ZERO_A) * N::FACTOR_A), b = exact(real<L>(added - (int32_t)N::ZERO_B) * N::FACTOR_B);
        sums[p] = between(rounded<L>(a + b) + (int32_t)N::ZERO, N::LOW, N::HIGH);
      }
      if constexpr (!N::POOL) write<L>(y + p / WIDTH * N::YR + p % WIDTH * N::YP + k, sums[p], k);
    }
    if constexpr (N::POOL) {
      LT_UNROLL
      for (int p = 0; p < PIXELS / 4; p++) {
        const int i = p / (WIDTH / 2), j = p % (WIDTH / 2), at = 2 * i * WIDTH + 2 * j;
        write<L>(y + i * N::YR + j * N::YP + k, larger(larger(sums[at], sums[at + 1]), larger(sums[at + WIDTH], sums[at + WIDTH + 1])), k);
      }
    }
  }

  // What is stored, and what a residual is added to.
  template <int L> static LT_INLINE Ints<L> rescaled(const Ints<L> &sum, const Vector<L> &factor) {
    const Ints<L> v = rounded<L>(exact(real<L>(sum) * factor)) + (int32_t)N::CONV_ZERO;
    if constexpr (!N::RESIDUAL && N::CONV_LOW == 0 && N::CONV_HIGH == 255) return v;
    else return between(v, N::CONV_LOW, N::CONV_HIGH);
  }

  template <int L> static LT_INLINE void write(uint8_t *y, const Ints<L> &v, int k) {
    if (SPACE<L> >= L || k + L < N::K) narrow<L>(y, v);
    else narrow<L, (SPACE<L> < L ? SPACE<L> : L)>(y, v);
  }
};

// The base of a layer of integers, as `Real` is one of floats.
struct Integer {
  typedef uint8_t X, A, Y;
  static constexpr int STEP = 4;
  template <int L> using Sum = Ints<L>;
  template <class N, int HEIGHT, int WIDTH> using Finish = Requantize<N, HEIGHT, WIDTH>;
  template <int L> static LT_INLINE Ints<L> weights(const float *from) { return load_ints<L>(from); }
  template <class N, int L> static LT_INLINE Ints<L> start(const float *bias) {
    return SIGNS ? load_ints<L>(bias) + load_ints<L>(bias + 2 * N::SEGMENT) : load_ints<L>(bias);
  }
  template <int L> static LT_INLINE Ints<L> value(const uint8_t *x) { return Ints<L>{} + (load_ints<1>(x) ^ SIGNS); }
  template <bool SMALL, int L> static LT_INLINE void add(Ints<L> &sum, const Ints<L> &w, const Ints<L> &x) { sum = dot<SMALL, L>(sum, x, w); }
};

// One filter a channel: vectors are of channels, and a quad holds four neighbours in a row, which move by one byte with each column; weights are
// [C/16][R][QUADS][16][4], the quad of the last taps first. A work item is a row of tiles of HEIGHT x 1 pixels.
template <class N> struct Depthwise8 {
  static constexpr int QUADS = (N::S + 3) / 4, HEIGHT = QUADS == 1 && N::SH == 1 ? 4 : 2, ITEMS = (N::OH + HEIGHT - 1) / HEIGHT;
  static constexpr int NEW = N::SW < N::S ? N::SW : N::S;  // columns that each pixel reads first

  static LT_INLINE void run(const uint8_t *x, const float *w, const float *bias, const uint8_t *residual, uint8_t *y, int begin, int end) {
    constexpr int WHOLE = (N::K + HALF - 1) / HALF * HALF / LANES;
    x -= N::PH * N::XR + N::PW * N::XP;
    for (int item = begin; item < end; item++) {
      for (int v = 0; v < WHOLE; v++) row<LANES>(x, w, bias, residual, y, item * HEIGHT, v * LANES);
      if constexpr (WHOLE * LANES < N::K) row<HALF>(x, w, bias, residual, y, item * HEIGHT, WHOLE * LANES);
    }
  }

  template <int L> static LT_INLINE void row(const uint8_t *x, const float *w, const float *bias, const uint8_t *residual, uint8_t *y, int p, int k) {
    if (N::OH % HEIGHT == 0 || p + HEIGHT <= N::OH) columns<L, HEIGHT>(x, w, bias, residual, y, p, k);
    else columns<L, N::OH % HEIGHT ? N::OH % HEIGHT : 1>(x, w, bias, residual, y, p, k);
  }

  template <int L, int ROWS> static LT_INLINE void columns(const uint8_t *x, const float *w, const float *bias, const uint8_t *residual, uint8_t *y, int p, int k) {
    constexpr int INPUTS = (ROWS - 1) * N::SH + N::R;
    Ints<L> weights[N::R * QUADS], quads[INPUTS][QUADS] = {};
    LT_UNROLL
    for (int i = 0; i < N::R * QUADS; i++) weights[i] = load_ints<L>(w + (k / 16 * N::R * QUADS + i) * 16 + k % 16);
    const Ints<L> first = Integer::start<N, L>(bias + k);
    x += p * N::SH * N::XR + k;
    LT_UNROLL
    for (int s = 0; s < N::S - NEW; s++) move<L, INPUTS>(quads, x + s * N::XP);
    x += (N::S - NEW) * N::XP;
    LT_NO_UNROLL
    for (int q = 0; q < N::OW; q++, x += N::SW * N::XP) {
      LT_UNROLL
      for (int s = 0; s < NEW; s++) move<L, INPUTS>(quads, x + s * N::XP);
      LT_UNROLL
      for (int i = 0; i < ROWS; i++) {
        Ints<L> sum[1] = {first};
        LT_UNROLL
        for (int r = 0; r < N::R; r++) {
          LT_UNROLL
          for (int j = 0; j < QUADS; j++) sum[0] = dot<N::SMALL, L>(sum[0], quads[i * N::SH + r][j], weights[r * QUADS + j]);
        }
        const uint8_t *added = N::RESIDUAL ? residual + (p + i) * N::RR + q * N::RP : residual;
        Requantize<N, 1, 1>::template finish<L>(sum, bias, added, y + (p + i) * N::YR + q * N::YP, k);
      }
    }
  }

  template <int L, int INPUTS> static LT_INLINE void move(Ints<L> (&quads)[INPUTS][QUADS], const uint8_t *x) {
    typedef typename NumbersOf<uint32_t, L>::Type Bits;
    LT_UNROLL
    for (int i = 0; i < INPUTS; i++) {
      LT_UNROLL
      for (int j = QUADS - 1; j > 0; j--) quads[i][j] = (Ints<L>)((Bits)quads[i][j] >> 8 | (Bits)quads[i][j - 1] << 24);
      quads[i][0] = (Ints<L>)((Bits)quads[i][0] >> 8 | (Bits)(widen<L>(x + i * N::XR) ^ (SIGNS & 128)) << 24);
    }
  }
};
