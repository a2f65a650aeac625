// Layers on rows of atoms or pairs and their derivatives, and the radial bases, for the evaluation without autograd.

#pragma once

#include <cmath>
#include <limits>

#include "dual.hpp"

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
    Exhaustion exhaustion;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(std::min<int64_t>(threads, n))) if (threads > 1 && n > 1)
    for (int64_t k = 0; k < n; ++k) exhaustion.within([&] { body(k * size, std::min(count, (k + 1) * size)); });
    exhaustion.raise();
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

// out = x W + bias, or out += x W; of dual numbers only the values have a bias.
template <typename N>
void apply(const Linear<Real<N>>& w, const Rows<N>& x, const Rows<N>& out, int64_t rows, bool add = false) {
    using T = Real<N>;
    // Values and rates apart; or alike, as rows that follow on one another.
    const bool alike = x.in_turn() && out.in_turn() && (add || !w.bias);
    const int64_t parts = alike ? 1 : PARTS<N>, all = alike ? rows * PARTS<N> : rows, piece = ROW_PIECE / parts;
    const int64_t x_row = alike ? x.width : x.step, out_row = alike ? out.width : out.step;
    for (int64_t r0 = 0; r0 < all; r0 += piece)
        for (int64_t column = 0; column < w.columns; column += WIDTH<T>)
            for (int64_t part = 0; part < parts; ++part) {
                T* to = out.data + r0 * out_row + part * out.rates + column;
                const T* start = add ? to : w.bias && !part ? w.bias + column : NOTHING<T>;
                product(x.data + r0 * x_row + part * x.rates, x_row, 1, w.panels + column * w.inner, WIDTH<T>, start,
                        add ? out_row : 0, to, out_row, std::min(piece, all - r0), w.inner);
            }
}

constexpr int64_t ROWS_AT_ONCE = 240;  // of a sum over rows: with the results they stay in the caches

// Derivatives, as asked for, by a weight (inputs, blocks * channels), from `offset` rows on, and by the bias: from the map's
// inputs x and the derivatives y by its results, which are padded blocks of so many channels. What is null is not wanted.
template <typename N>
void linear_back(int threads, const Rows<N>& x, int64_t inputs, const Rows<N>& y, int64_t blocks, int64_t channels,
                 int64_t rows, Real<N>* to, Real<N>* to_bias, int64_t offset = 0) {
    using T = Real<N>;
    const int64_t width = padded<T>(channels), columns = blocks * channels;
    const int64_t other = IS_DUAL<N> ? y.rates : 0;
    pieces(threads, to || to_bias ? blocks * width / WIDTH<T> : 0, 1, [&](int64_t panel, int64_t) {
        const int64_t block = panel * WIDTH<T> / width, channel = panel * WIDTH<T> % width;
        const int64_t count = std::min<int64_t>(WIDTH<T>, channels - channel);
        const T* from = y.data + panel * WIDTH<T>;
        if (to) {
            Scratch<T> scratch;
            T* sums = scratch.zeros(inputs * WIDTH<T>);
            for (int64_t r = 0; r < rows; r += ROWS_AT_ONCE / PARTS<N>) {
                const int64_t now = std::min(ROWS_AT_ONCE / PARTS<N>, rows - r);
                // The rate of a product: a value and a rate each time.
                for (int64_t part = 0; part < PARTS<N>; ++part)
                    add_product(x.row(r) + part * x.rates, 1, x.step, from + r * y.step + other - part * y.rates, y.step,
                                sums, WIDTH<T>, inputs, now);
            }
            for (int64_t c = 0; c < inputs; ++c)
                std::memcpy(to + (offset + c) * columns + block * channels + channel, sums + c * WIDTH<T>, count * sizeof(T));
        }
        if (to_bias) {
            alignas(64) T sums[WIDTH<T>] = {};
            for (int64_t r = 0; r < rows; ++r)
                for (int k = 0; k < 2; ++k) vector(sums, k) += vector(from + r * y.step + other, k);
            std::memcpy(to_bias + block * channels + channel, sums, count * sizeof(T));
        }
    });
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

// An activation and its first and second derivatives.
template <typename T>
struct Curve {
    Vector<T> value, slope, curvature;
};

template <typename T>
Curve<T> curve(Activation act, Vector<T> x) {
    const Vector<T> zero = {};
    if (act == Activation::silu) {
        const Vector<T> s = T(1) / (T(1) + exponential<T>(-x)), value = x * s;
        return {value, s + value * (T(1) - s), s * (T(1) - s) * (T(2) + x * (T(1) - T(2) * s))};
    }
    const Vector<T> y = exponential<T>(x < zero ? x : -x), over = T(1) / (T(1) + y);
    return {(x > zero ? x : (x == x ? zero : x)) + (logarithm<T>(y) - static_cast<T>(0.6931471805599453)),
            x < zero ? y * over : over, y * over * over};
}

// a = act(h), and h becomes act'(h), if that is wanted; over padded rows.
template <bool SLOPES = true, typename N>
void activate(Activation act, const Rows<N>& h, const Rows<N>& a, int64_t rows) {
    using T = Real<N>;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t f = 0; f < h.width; f += Simd<T>::lanes) {
            const Many<N> x = h.at(r, f);
            const Curve<T> c = curve<T>(act, value(x));
            if constexpr (IS_DUAL<N>) {
                a.put(r, f, Many<N>{c.value, c.slope * x.rate});
                if constexpr (SLOPES) h.put(r, f, Many<N>{c.slope, c.curvature * x.rate});
            } else {
                a.put(r, f, c.value);
                if constexpr (SLOPES) h.put(r, f, c.slope);
            }
        }
}

// by *= slope.
template <typename N>
void chain(const Rows<N>& slope, const Rows<N>& by, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t f = 0; f < by.width; f += Simd<Real<N>>::lanes) by.put(r, f, by.at(r, f) * slope.at(r, f));
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
    T *basis, *slope;         // (P, row), the latter right behind the former
    T* curvature;             // (P, row), second derivatives; or null
    T *envelope, *fall, *bend;  // (P,): cutoff function and its first and second derivatives
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
            const double bend = d < cutoff ? -0.5 * w * w * cosine : 0;
            pairs.distance[p] = d, pairs.envelope[p] = f, pairs.fall[p] = fall, pairs.bend[p] = bend;
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
            for (int64_t k = 0; k < size; ++k)
                to_curvature[k] = normal<T>(
                    enveloped ? curvature[k] * f + 2 * slope[k] * fall + value[k] * bend : curvature[k]);
            if (enveloped) to_curvature[size] = bend;
        }
    });
}

}  // namespace
