// Activations of one float or of a vector of them. NaN passes through, infinities as in PyTorch.

template <typename T> struct lanes {  // a vector's integers
  typedef __typeof__(T() < T()) type;
};
template <> struct lanes<float> {
  typedef int32_t type;
};

template <typename To, typename From> inline To as_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline int32_t whole(float v) { return (int32_t)v; }
inline float fraction(int32_t v) { return (float)v; }
template <typename T> inline typename lanes<T>::type whole(T v) { return __builtin_convertvector(v, typename lanes<T>::type); }

// e^x = 2^n e^r, |r| <= ln 2 / 2, by a polynomial of degree 6 (Cephes): 1 or 2 units in the last place.
template <typename T> inline T exp_of(const T &x) {
  T v = x > 89.0f ? T{} + 89.0f : x;
  v = v < -104.0f ? T{} - 104.0f : v;
  v = v != v ? T{} : v;
  const T shifted = v * 1.44269504088896341f + 12582912.0f;  // rounds to whole numbers
  const T n = shifted - 12582912.0f;
  const T r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
  T p = T{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const auto power = whole(n);
  const auto half = power >> 1;  // in two steps, so that the ends of the range neither overflow nor vanish too early
  typedef typename lanes<T>::type I;
  p = p * as_bits<T>((I)((half + 127) << 23)) * as_bits<T>((I)((power - half + 127) << 23));
  return x != x ? x : p;
}

template <typename T> inline T act_none(const T &v) { return v; }
template <typename T> inline T act_relu(const T &v) { return v < 0.0f ? T{} : v; }
template <typename T> inline T act_relu6(const T &v) {
  const T low = v < 0.0f ? T{} : v;
  return low > 6.0f ? T{} + 6.0f : low;
}
template <typename T> inline T act_sigmoid(const T &v) { return 1.0f / (1.0f + exp_of(T(-v))); }
template <typename T> inline T act_silu(const T &v) { return v / (1.0f + exp_of(T(-v))); }
template <typename T> inline T act_hardsigmoid(const T &v) { return act_relu6(T(v + 3.0f)) * (1.0f / 6.0f); }
template <typename T> inline T act_hardswish(const T &v) { return v * act_relu6(T(v + 3.0f)) * (1.0f / 6.0f); }
template <typename T> inline T act_tanh(const T &v) { return 1.0f - 2.0f / (exp_of(T(v + v)) + 1.0f); }

// Abramowitz & Stegun 7.1.26: off by at most 1.5e-7.
template <typename T> inline T erf_of(const T &x) {
  const T a = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.3275911f * a);
  const T p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  const T y = 1.0f - p * exp_of(T(-a * a));
  return x < 0.0f ? -y : y;
}
template <typename T> inline T act_gelu(const T &v) { return 0.5f * v * (1.0f + erf_of(T(v * 0.70710678118654752f))); }
