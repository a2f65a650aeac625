// Layers on rows of atoms or pairs and their derivatives, and the radial bases, for the evaluation without autograd.

#pragma once

#include <cmath>
#include <limits>

#include "simd.hpp"

namespace {

constexpr double EPSILON = 1e-8;  // of PaiNN's norm; the one in mixing.py

template <typename T>
int64_t padded(int64_t channels) {
    return (channels + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>;
}

// Calls body(start, stop) on pieces of a range; small ranges stay on this thread.
template <typename Body>
void pieces(int threads, int64_t count, int64_t size, Body body) {
    const int64_t n = (count + size - 1) / size;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(std::min<int64_t>(threads, n))) if (threads > 1 && n > 1)
    for (int64_t k = 0; k < n; ++k) body(k * size, std::min(count, (k + 1) * size));
}

// A linear map: W (inner, columns) in panels of WIDTH columns, (columns / WIDTH, inner, WIDTH), with zeros beyond the
// last column; the bias is padded alike, or null.
template <typename T>
struct Linear {
    const T *panels, *bias;
    int64_t inner, columns;
};

constexpr int64_t ROW_PIECE = 72;  // rows that are multiplied at once: with one panel they stay in the fastest caches

template <typename T>
alignas(64) constexpr T NOTHING[WIDTH<T>] = {};

// out = x W + bias, or out += x W.
template <typename T>
void apply(const Linear<T>& w, const T* x, int64_t x_row, T* out, int64_t out_row, int64_t rows, bool add = false) {
    for (int64_t r0 = 0; r0 < rows; r0 += ROW_PIECE)
        for (int64_t column = 0; column < w.columns; column += WIDTH<T>) {
            T* to = out + r0 * out_row + column;
            const T* start = add ? to : w.bias ? w.bias + column : NOTHING<T>;
            product(x + r0 * x_row, x_row, 1, w.panels + column * w.inner, WIDTH<T>, start, add ? out_row : 0, to, out_row,
                    std::min(ROW_PIECE, rows - r0), w.inner);
        }
}

template <typename T>
struct Integer;
template <>
struct Integer<float> {
    typedef int32_t Type __attribute__((vector_size(64)));
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float least = -87.0f, most = 88.0f;
};
template <>
struct Integer<double> {
    typedef int64_t Type __attribute__((vector_size(64)));
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double least = -708.0, most = 709.0;
};

// e^x to rounding, by 2^n e^r with |r| <= ln 2 / 2 and the Taylor series of e^r. NaN stays NaN.
template <typename T>
Vector<T> exponential(Vector<T> x) {
    using I = typename Integer<T>::Type;
    constexpr int terms = sizeof(T) == 4 ? 7 : 13;
    const Vector<T> least = Vector<T>{} + Integer<T>::least, most = Vector<T>{} + Integer<T>::most;
    const Vector<T> inside = x < least ? least : (x > most ? most : x);
    // Adding and subtracting 1.5 · 2^mantissa rounds to the nearest integer.
    const T magic = static_cast<T>(1.5) * static_cast<T>(int64_t(1) << Integer<T>::mantissa);
    const Vector<T> n = (inside * static_cast<T>(1.4426950408889634) + magic) - magic;
    // ln 2 in two parts, the first one short enough for an exact product.
    const T high = sizeof(T) == 4 ? static_cast<T>(0.693359375) : static_cast<T>(0.693147180369123816490);
    const T low = sizeof(T) == 4 ? static_cast<T>(-2.12194440e-4) : static_cast<T>(1.90821492927058770002e-10);
    const Vector<T> r = (inside - n * high) - n * low;
    T factors[terms + 1] = {1};
    for (int k = 1; k <= terms; ++k) factors[k] = factors[k - 1] / k;
    Vector<T> sum = Vector<T>{} + factors[terms];
    for (int k = terms - 1; k >= 0; --k) sum = sum * r + factors[k];
    const I power = (__builtin_convertvector(n, I) + Integer<T>::bias) << Integer<T>::mantissa;
    Vector<T> scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x == x ? sum * scale : x;
}

enum class Activation : int64_t { silu = 0, shifted_softplus = 1 };

// ln(1 + y) = 2 artanh(y / (2 + y)) for 0 <= y <= 1, by the series of artanh.
template <typename T>
Vector<T> logarithm(Vector<T> y) {
    constexpr int terms = sizeof(T) == 4 ? 8 : 17;
    const Vector<T> z = y / (T(2) + y), square = z * z;
    Vector<T> sum = Vector<T>{} + T(1) / (2 * terms - 1);
    for (int k = terms - 2; k >= 0; --k) sum = sum * square + T(1) / (2 * k + 1);
    return T(2) * z * sum;
}

// ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|).
template <typename T>
Vector<T> softplus(Vector<T> x) {
    const Vector<T> zero = {}, y = exponential<T>(x < zero ? x : -x);
    return (x > zero ? x : (x == x ? zero : x)) + logarithm<T>(y);
}

// a = act(h), and h becomes act'(h); over padded rows.
template <typename T>
void activate(Activation act, T* h, T* a, int64_t count) {
    for (int64_t k = 0; k < count; k += Simd<T>::lanes) {
        const Vector<T> x = vector(h + k, 0), zero = {};
        if (act == Activation::silu) {
            const Vector<T> sigmoid = T(1) / (T(1) + exponential<T>(-x)), value = x * sigmoid;
            vector(a + k, 0) = value;
            vector(h + k, 0) = sigmoid + value * (T(1) - sigmoid);
        } else {
            const Vector<T> y = exponential<T>(x < zero ? x : -x), over = T(1) / (T(1) + y);
            vector(a + k, 0) = (x > zero ? x : (x == x ? zero : x)) + (logarithm<T>(y) - static_cast<T>(0.6931471805599453));
            vector(h + k, 0) = x < zero ? y * over : over;
        }
    }
}

// by *= slope.
template <typename T>
void chain(const T* slope, T* by, int64_t count) {
    for (int64_t k = 0; k < count; k += Simd<T>::lanes) vector(by + k, 0) *= vector(slope + k, 0);
}

// Two linear maps with the activation between them, and their transposes without bias.
template <typename T>
struct Mlp {
    Linear<T> in, out, in_t, out_t;
};

enum class Basis : int64_t { bessel = 0, gaussian = 1 };

// Pairs of one member: lengths, directions, and the radial functions with their derivatives by the length.
template <typename T>
struct Pairs {
    T *distance, *u;          // (P,), (P, 3)
    T *basis, *slope;         // (P, row)
    T* curvature;             // (P, row), second derivatives; or null
    T *envelope, *fall;       // (P,): cutoff function and its derivative
    int64_t row;
};

// The radial functions of distance r, and their first and second derivatives by it, for K = size.
inline void radial(Basis kind, int64_t size, double cutoff, double r, double sine, double cosine, double* value,
                   double* slope, double* curvature) {
    using V = Vector<double>;
    if (kind == Basis::gaussian) {
        const double width = cutoff / (size - 1), exponent = -0.5 / (width * width);
        for (int64_t start = 0; start < size; start += Simd<double>::lanes) {
            V x;
            for (int lane = 0; lane < Simd<double>::lanes; ++lane) x[lane] = r - (start + lane) * width;
            const V e = exponential<double>(exponent * x * x), by = 2 * exponent * x;
            vector(value + start, 0) = e;
            vector(slope + start, 0) = by * e;
            vector(curvature + start, 0) = (2 * exponent + by * by) * e;
        }
        return;
    }
    const double w = M_PI / cutoff, over = 1 / r;
    double s = sine, c = cosine;
    for (int64_t k = 0; k < size; ++k) {
        const double kw = (k + 1) * w;
        value[k] = s * over;
        slope[k] = (kw * c - value[k]) * over;
        curvature[k] = -kw * kw * value[k] - 2 * slope[k] * over;
        const double next = s * cosine + c * sine;
        c = c * cosine - s * sine, s = next;
    }
}

// Zero for what is so small that no sum depends on it: processors are slow with numbers below the normal ones, as which
// Gaussians far from their centres would come.
template <typename T>
T normal(double value) {
    return std::abs(value) < std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon() ? 0 : value;
}

// Fills `pairs`. enveloped: radial functions times the cutoff function, followed by that itself.
template <typename T>
void geometry(const T* positions, const T* shifts, const int64_t* first, const int64_t* second, int64_t count, Basis kind,
              int64_t size, double cutoff, bool enveloped, const Pairs<T>& pairs, int threads) {
    pieces(threads, count, 256, [&](int64_t start, int64_t stop) {
        Scratch<double> scratch;
        const int64_t room = size + Simd<double>::lanes;
        double *value = scratch.take(room), *slope = scratch.take(room), *curvature = scratch.take(room);
        for (int64_t p = start; p < stop; ++p) {
            double r[3], square = 0;
            for (int x = 0; x < 3; ++x) {
                r[x] = double(positions[3 * second[p] + x] - positions[3 * first[p] + x] + shifts[3 * p + x]);
                square += r[x] * r[x];
            }
            const double d = std::sqrt(square), w = M_PI / cutoff, sine = std::sin(w * d), cosine = std::cos(w * d);
            const double f = d < cutoff ? 0.5 * (cosine + 1) : 0, fall = d < cutoff ? -0.5 * w * sine : 0;
            pairs.distance[p] = d, pairs.envelope[p] = f, pairs.fall[p] = fall;
            for (int x = 0; x < 3; ++x) pairs.u[3 * p + x] = r[x] / d;
            radial(kind, size, cutoff, d, sine, cosine, value, slope, curvature);
            T *to = pairs.basis + p * pairs.row, *to_slope = pairs.slope + p * pairs.row;
            for (int64_t k = 0; k < size; ++k) {
                to[k] = normal<T>(enveloped ? value[k] * f : value[k]);
                to_slope[k] = normal<T>(enveloped ? slope[k] * f + value[k] * fall : slope[k]);
            }
            if (enveloped) to[size] = f, to_slope[size] = fall;
            if (!pairs.curvature) continue;
            T* to_curvature = pairs.curvature + p * pairs.row;
            const double bend = d < cutoff ? -0.5 * w * w * cosine : 0;
            for (int64_t k = 0; k < size; ++k)
                to_curvature[k] = normal<T>(
                    enveloped ? curvature[k] * f + 2 * slope[k] * fall + value[k] * bend : curvature[k]);
            if (enveloped) to_curvature[size] = bend;
        }
    });
}

}  // namespace
