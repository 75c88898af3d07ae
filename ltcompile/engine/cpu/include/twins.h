// Layers of at most eight filters on vectors of sixteen numbers: lanes are 8 filters times two neighbouring steps of channels, which one load of 64
// bits brings to all of them; the two sums of a filter are added at the end. N::C counts these pairs of steps; weights are [R][S][C][8][2],
// and the numbers with which sums begin have zeros behind each.

template <class Base> struct Twins : Base {
  typedef typename Base::X X;
  static constexpr int STEP = 2 * Base::STEP;
  template <int L> using Sum = typename Base::template Sum<2 * L>;

  template <int L> static LT_INLINE auto weights(const float *from) { return Base::template weights<2 * L>(from); }
  template <class N, int L> static LT_INLINE Sum<L> start(const float *bias) { return Base::template start<N, 2 * L>(bias); }
  template <int L> static LT_INLINE auto value(const X *x) {
    decltype(weights<L>(nullptr)) both;
    asm("vbroadcastsd %1, %0" : "=v"(both) : "m"(*(const X(*)[8 / sizeof(X)])x));
    return both;
  }
  template <bool SMALL, int L, class V> static LT_INLINE void add(Sum<L> &sum, const V &w, const V &x) { Base::template add<SMALL, 2 * L>(sum, w, x); }

  template <class N, int HEIGHT, int WIDTH> struct Finish {
    typedef typename N::A A;
    typedef typename N::Y Y;
    template <int L> static LT_INLINE void finish(Sum<L> (&sums)[HEIGHT * WIDTH], const float *bias, const A *residual, Y *y, int k) {
      typename Base::template Sum<L> added[HEIGHT * WIDTH];
      LT_UNROLL
      for (int p = 0; p < HEIGHT * WIDTH; p++) added[p] = sum(sums[p], Count<L>());
      Base::template Finish<N, HEIGHT, WIDTH>::template finish<L>(added, bias, residual, y, k);
    }
    template <class V, int... I> static LT_INLINE auto sum(const V &v, Sequence<I...>) {
      return __builtin_shufflevector(v, v, 2 * I...) + __builtin_shufflevector(v, v, 2 * I + 1 ...);
    }
  };
};
