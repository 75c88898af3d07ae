// Vectors of floats by the extensions of GCC and Clang. The same source compiles for AVX-512, AVX2, NEON and plain C++.

#if defined(__AVX512F__)
#define LT_LANES 16
#define LT_PICK(avx512, avx2, neon) avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define LT_LANES 8
#define LT_PICK(avx512, avx2, neon) avx2
#else  // NEON, and plain C++ with vectors of the same size
#define LT_LANES 4
#define LT_PICK(avx512, avx2, neon) neon
#endif
#define LT_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define LT_UNROLL _Pragma("clang loop unroll(full)")
#define LT_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define LT_UNROLL _Pragma("GCC unroll 64")
#define LT_NO_UNROLL _Pragma("GCC unroll 1")
#endif

constexpr int LANES = LT_LANES;                    // of a register
constexpr int HALF = LANES > 8 ? LANES / 2 : LANES;  // of the smallest vector that is worth using

template <int L> struct VectorOf {
  typedef float Floats __attribute__((vector_size(L * 4)));
};
template <int L> using Vector = typename VectorOf<L>::Floats;

template <int L> LT_INLINE Vector<L> load(const float *from) {
  Vector<L> v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <int L, int COUNT = L> LT_INLINE void store(float *to, const Vector<L> &v) { memcpy(to, &v, COUNT * sizeof(float)); }

template <class T, int L> struct NumbersOf {
  typedef T Type __attribute__((vector_size(L * sizeof(T))));
};
template <class T> struct NumbersOf<T, 1> {
  typedef T Type;
};
template <int L> using Ints = typename NumbersOf<int32_t, L>::Type;

template <int L> LT_INLINE Ints<L> load_ints(const void *from) {
  Ints<L> v;
  memcpy(&v, from, sizeof v);
  return v;
}

// The larger, lane by lane; NaN wins.
template <class V> LT_INLINE V larger(const V &a, const V &b) { return ((a > b) | (a != a)) ? a : b; }

// 0, 1, ..., COUNT - 1 as arguments of a template.
template <int... I> struct Sequence {};
template <int COUNT, int... I> struct Counted : Counted<COUNT - 1, COUNT - 1, I...> {};
template <int... I> struct Counted<0, I...> {
  typedef Sequence<I...> Type;
};
template <int COUNT> using Count = typename Counted<COUNT>::Type;
