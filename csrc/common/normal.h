// Standard normal noise as a function of a seed and an index, by Philox and the transform of Box and Muller (1958). Of
// the four words of counter c, the first two give the elements 4 c and 4 c + 1, the others 4 c + 2 and 4 c + 3: with
//
//     u = (w | 1) / 2³²,   a = 2π w' / 2³²:   √(-2 ln u) cos a   and   √(-2 ln u) sin a
//
// An element is this number to a few roundings, in float as in double, so both see the same noise; and it has the same
// bits wherever it is made, since only operations that are rounded once are used.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/philox.h"
#include "common/portable.h"

namespace lineavae {

template <class T>
struct NormalTraits;

// The polynomials of Cephes.
template <>
struct NormalTraits<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Bits kRootHalf = 0x3f3504f3;  // of √½
  static constexpr float kLn2 = 0.693147182f;
  static constexpr float kAnglePerWord = 1.46291807927e-9f;  // 2π / 2³²

  // -2 ln(1 + f), √½ <= 1 + f < √2
  LINEAVAE_HOST_DEVICE static float minus_two_log1p(float f) {
    float p = -1.40753672584e-1f;
    p = multiply_add(p, f, 2.3029220620e-1f);
    p = multiply_add(p, f, -2.3353997480e-1f);
    p = multiply_add(p, f, 2.4840281692e-1f);
    p = multiply_add(p, f, -2.8498645574e-1f);
    p = multiply_add(p, f, 3.3336115330e-1f);
    p = multiply_add(p, f, -4.0001429530e-1f);
    p = multiply_add(p, f, 4.9999987986e-1f);
    p = multiply_add(p, f, -6.6666662348e-1f);
    return multiply_add(f * (f * f), p, multiply_add(f, f, -(f + f)));
  }

  // |a| <= π/4
  LINEAVAE_HOST_DEVICE static float sine(float a) {
    const float square = a * a;
    float p = -1.9515295891e-4f;
    p = multiply_add(p, square, 8.3321608736e-3f);
    p = multiply_add(p, square, -1.6666654611e-1f);
    return multiply_add(p * square, a, a);
  }
  LINEAVAE_HOST_DEVICE static float cosine(float a) {
    const float square = a * a;
    float p = 2.443315711809948e-5f;
    p = multiply_add(p, square, -1.388731625493765e-3f);
    p = multiply_add(p, square, 4.166664568298827e-2f);
    return multiply_add(p * square, square, multiply_add(-0.5f, square, 1.0f));
  }
};

// Those of fdlibm.
template <>
struct NormalTraits<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Bits kRootHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kLn2 = 0.69314718055994530942;
  static constexpr double kAnglePerWord = 1.4629180792671596e-9;

  LINEAVAE_HOST_DEVICE static double minus_two_log1p(double f) {
    const double s = f / (2.0 + f), square = s * s, half = 0.5 * f * f;
    double p = 1.479819860511658591e-01;
    p = multiply_add(p, square, 1.531383769920937332e-01);
    p = multiply_add(p, square, 1.818357216161805012e-01);
    p = multiply_add(p, square, 2.222219843214978396e-01);
    p = multiply_add(p, square, 2.857142874366239149e-01);
    p = multiply_add(p, square, 3.999999999940941908e-01);
    p = multiply_add(p, square, 6.666666666666735130e-01);
    return -2.0 * (f - multiply_add(-s, multiply_add(p, square, half), half));
  }

  LINEAVAE_HOST_DEVICE static double sine(double a) {
    const double square = a * a;
    double p = 1.58969099521155010221e-10;
    p = multiply_add(p, square, -2.50507602534068634195e-08);
    p = multiply_add(p, square, 2.75573137070700676789e-06);
    p = multiply_add(p, square, -1.98412698298579493134e-04);
    p = multiply_add(p, square, 8.33333333332248946124e-03);
    p = multiply_add(p, square, -1.66666666666666324348e-01);
    return multiply_add(p * square, a, a);
  }
  LINEAVAE_HOST_DEVICE static double cosine(double a) {
    const double square = a * a;
    double p = -1.13596475577881948265e-11;
    p = multiply_add(p, square, 2.08757232129817482790e-09);
    p = multiply_add(p, square, -2.75573143513906633035e-07);
    p = multiply_add(p, square, 2.48015872894767294178e-05);
    p = multiply_add(p, square, -1.38888888888741095749e-03);
    p = multiply_add(p, square, 4.16666666666666019037e-02);
    return multiply_add(p * square, square, multiply_add(-0.5, square, 1.0));
  }
};

// √(-2 ln u)
template <class T>
LINEAVAE_HOST_DEVICE T normal_radius(uint32_t word) {
  using Traits = NormalTraits<T>;
  using Bits = typename Traits::Bits;
  // (w | 1) / 2³² is (⌊w / 2⌋ + ½) / 2³¹; conversions of 31 bits are signed, as every instruction set has them. Near 1,
  // where u would lose its last bits, 1 - u is what keeps them.
  constexpr int32_t kRootHalf = 0x5a827999;  // √½ 2³¹
  const int32_t half = static_cast<int32_t>(word >> 1);
  const bool near_one = half > kRootHalf;
  const T v = multiply_add(static_cast<T>(near_one ? half ^ 0x7fffffff : half), T(0x1p-31), T(0x1p-32));
  // u = 2ᵉ (1 + f), √½ <= 1 + f < √2
  const Bits bits = bit_cast<Bits>(v) - Traits::kRootHalf;
  const Bits scaled = (bits & ((Bits{1} << Traits::kMantissaBits) - 1)) + Traits::kRootHalf;
  const int32_t exponent = static_cast<int32_t>(static_cast<std::make_signed_t<Bits>>(bits) >> Traits::kMantissaBits);
  const T f = near_one ? -v : bit_cast<T>(scaled) - T(1), e = static_cast<T>(near_one ? 0 : exponent);
  return square_root_of_normal(multiply_add(e, T(-2) * Traits::kLn2, Traits::minus_two_log1p(f)));
}

template <class T>
struct NormalPair {
  T first, second;
};

template <class T>
LINEAVAE_HOST_DEVICE NormalPair<T> normal_pair(uint32_t radius_word, uint32_t angle_word) {
  using Traits = NormalTraits<T>;
  using Bits = typename Traits::Bits;
  constexpr int kSign = 8 * sizeof(T) - 1;
  const T radius = normal_radius<T>(radius_word);
  // a quadrant, in the highest two bits, and the rest of at most half of one
  const uint32_t quadrant = angle_word + 0x20000000u;
  const int32_t rest = static_cast<int32_t>(angle_word - (quadrant & 0xc0000000u));
  const T angle = static_cast<T>(rest) * Traits::kAnglePerWord;
  const T sine = Traits::sine(angle), cosine = Traits::cosine(angle);
  const uint32_t next = quadrant + 0x40000000u;
  const bool swapped = static_cast<int32_t>(quadrant ^ next) < 0;
  const Bits negative_cosine = static_cast<Bits>(next >> 31) << kSign;
  const Bits negative_sine = static_cast<Bits>(quadrant >> 31) << kSign;
  return {radius * bit_cast<T>(bit_cast<Bits>(swapped ? sine : cosine) ^ negative_cosine),
          radius * bit_cast<T>(bit_cast<Bits>(swapped ? cosine : sine) ^ negative_sine)};
}

LINEAVAE_HOST_DEVICE PhiloxKey key_of(int64_t seed) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return {{static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)}};
}

LINEAVAE_HOST_DEVICE PhiloxCounter normal_words(PhiloxKey key, uint64_t quad) {
  return philox({{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), 0, 0}}, key);
}

// The elements 4 quad to 4 quad + 3.
template <class T>
LINEAVAE_HOST_DEVICE void normal_quad(PhiloxKey key, uint64_t quad, T* normals) {
  const PhiloxCounter words = normal_words(key, quad);
  const NormalPair<T> low = normal_pair<T>(words.word[0], words.word[1]);
  const NormalPair<T> high = normal_pair<T>(words.word[2], words.word[3]);
  normals[0] = low.first;
  normals[1] = low.second;
  normals[2] = high.first;
  normals[3] = high.second;
}

// The elements 2 half and 2 half + 1.
template <class T>
LINEAVAE_HOST_DEVICE void normal_half_quad(PhiloxKey key, uint64_t half, T* normals) {
  const PhiloxCounter words = normal_words(key, half / 2);
  const bool high = half & 1;
  const NormalPair<T> pair = normal_pair<T>(high ? words.word[2] : words.word[0], high ? words.word[3] : words.word[1]);
  normals[0] = pair.first;
  normals[1] = pair.second;
}

}  // namespace lineavae
