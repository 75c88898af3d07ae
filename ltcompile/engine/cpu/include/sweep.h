// Loops over channels in vectors as wide as they fit.

template <> struct VectorOf<1> {
    typedef float Floats;
};

template <int L> LT_INLINE Vector<L> all(float value) { return Vector<L>{} + value; }

template <int L> struct Width {
    static constexpr int value = L;
};

// f(Width<L>(), c) for chunks of L floats that cover c = 0 ... N - 1.
template <int N, class F> LT_INLINE void sweep(const F &f) {
    constexpr int wide = N / LANES * LANES, half = LANES > 8 && N - wide >= 8 ? wide + 8 : wide;
    for (int c = 0; c < wide; c += LANES) f(Width<LANES>(), c);
    if constexpr (half > wide) f(Width<8>(), wide);
    for (int c = half; c < N; c++) f(Width<1>(), c);
}

// A function of one float, lane by lane.
template <class F> LT_INLINE float by_lane(float v, F f) { return f(v); }
template <class V, class F> LT_INLINE V by_lane(V v, F f) {
    for (unsigned i = 0; i < sizeof v / sizeof(float); i++) v[i] = f(v[i]);
    return v;
}

LT_INLINE float smaller(float a, float b) { return a < b || a != a ? a : b; }
template <class V> LT_INLINE V smaller(const V &a, const V &b) { return ((a < b) | (a != a)) ? a : b; }
template <class V> LT_INLINE V not_above(const V &v, const V &most) { return v > most ? most : v; }
LT_INLINE int least(int a, int b) { return a < b ? a : b; }
LT_INLINE int most(int a, int b) { return a > b ? a : b; }

// The sum of f(width, c) over all channels.
template <int N, class F> LT_INLINE float total(const F &f) {
    Vector<LANES> sums = all<LANES>(0.0f);
    float sum = 0.0f;
    sweep<N>([&](auto width, int c) {
        constexpr int L = decltype(width)::value;
        const auto v = f(width, c);
        if constexpr (L == LANES) {
            sums += v;
        } else if constexpr (L == 1) {
            sum += v;
        } else {
            for (int i = 0; i < L; i++) sum += v[i];
        }
    });
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return sum;
}

// A value around `height` rows of `width` bytes: `border` rows, and `side` bytes at both ends of each row.
inline void clear_border(void *to, int height, int width, int border, int side, int value = 0) {
    const size_t row = (size_t)(width + 2 * side);
    unsigned char *at = static_cast<unsigned char *>(to), *end = at + border * row + (size_t)side + (size_t)width;
    memset(at, value, border * row + (size_t)side);
    for (int y = 0; y + 1 < height; y++, end += row) memset(end, value, 2 * (size_t)side);
    memset(end, value, border * row + (size_t)side);
}
