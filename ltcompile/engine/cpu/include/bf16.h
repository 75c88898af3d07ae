// Numbers of 16 bits, the upper halves of float32, rounded to the nearest, ties to even; sums are float32.
//
// A step of a convolution is over a pair: two input channels in one number of 32 bits; weights are [K/16][R][S][C/2][16][2].

template <int L> LT_INLINE typename NumbersOf<uint16_t, L>::Type upper_half(const Vector<L> &v) {
  typedef typename NumbersOf<uint32_t, L>::Type Bits;
  typename NumbersOf<uint16_t, L>::Type half;
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  if constexpr (L >= HALF) {
    asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(v));
    return half;
  }
#endif
  const Bits bits = as_bits<Bits>(v), up = bits + (Bits{} + 0x7fff) + (bits >> 16 & 1), rounded = (v != v ? bits | 0x400000 : up) >> 16;
  if constexpr (L == 1) half = (uint16_t)rounded;
  else half = __builtin_convertvector(rounded, typename NumbersOf<uint16_t, L>::Type);
  return half;
}

struct bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(float v) : bits(upper_half<1>(v)) {}
  operator float() const { return as_bits<float>((uint32_t)bits << 16); }
};

template <int L> LT_INLINE Vector<L> load(const bf16 *from) {
  if constexpr (L == 1) {
    return *from;
  } else {
    typename NumbersOf<uint16_t, L>::Type half;
    memcpy(&half, from, sizeof half);
    return as_bits<Vector<L>>(__builtin_convertvector(half, typename NumbersOf<uint32_t, L>::Type) << 16);
  }
}
template <int L, int COUNT = L> LT_INLINE void store(bf16 *to, const Vector<L> &v) {
  const auto half = upper_half<L>(v);
  memcpy(to, &half, COUNT * sizeof(bf16));
}

// The base of a layer whose input and weights are bf16.
struct Pairs : Real {
  typedef bf16 X;
  static constexpr int STEP = 2;
  template <int L> static LT_INLINE Ints<L> weights(const float *from) { return load_ints<L>(from); }
  template <int L> static LT_INLINE Ints<L> value(const bf16 *x) { return Ints<L>{} + load_ints<1>(x); }
  template <bool, int L> static LT_INLINE void add(Vector<L> &sum, const Ints<L> &w, const Ints<L> &x) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
#else
    constexpr int32_t UPPER = (int32_t)0xffff0000u;
    sum += as_bits<Vector<L>>(Ints<L>(w << 16)) * as_bits<Vector<L>>(Ints<L>(x << 16));
    sum += as_bits<Vector<L>>(Ints<L>(w & UPPER)) * as_bits<Vector<L>>(Ints<L>(x & UPPER));
#endif
  }
};
