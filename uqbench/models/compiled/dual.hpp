// Dual numbers: values that carry their rates of change along, through the same text as values alone.
//
// With cotangents c of the energies, g of the forces F = -dE/dx and l of the latents, what training and attacks
// differentiate is S = Σ c E + Σ g F + Σ l ξ. As Σ g F is the rate of E while the positions move by -g, every derivative
// of S is found by computing the derivatives of E in dual numbers: dE/dy becomes (dE/dy, dS/dy), if the way back begins
// with (1, c) for each energy and l is added to the rates of the derivatives by the latents. So one text of the network
// and of its way back gives energies and forces with values alone, and with dual numbers the derivatives of S.

#pragma once

#include <cmath>
#include <type_traits>

#include "simd.hpp"

namespace {

template <typename V>
struct Dual {
    V value, rate;
};

template <typename X>
constexpr bool IS_DUAL = false;
template <typename V>
constexpr bool IS_DUAL<Dual<V>> = true;

// Kinds of numbers N: float and double, and dual numbers of those.
template <typename N>
struct Kind {
    using Real = N;
    using Many = Vector<N>;
};
template <typename T>
struct Kind<Dual<T>> {
    using Real = T;
    using Many = Dual<Vector<T>>;
};

template <typename N>
using Real = typename Kind<N>::Real;
template <typename N>
using Many = typename Kind<N>::Many;
template <typename N>
constexpr int PARTS = IS_DUAL<N> ? 2 : 1;

template <typename X>
auto value(const X& x) {
    if constexpr (IS_DUAL<X>)
        return x.value;
    else
        return x;
}

// Of dE/dy what the derivative by y is that was asked for: dE/dy itself, or dS/dy.
template <typename X>
auto asked(const X& x) {
    if constexpr (IS_DUAL<X>)
        return x.rate;
    else
        return x;
}

template <typename A, typename B>
auto operator*(const Dual<A>& a, const Dual<B>& b) -> Dual<decltype(a.value * b.value)> {
    return {a.value * b.value, a.value * b.rate + a.rate * b.value};
}
template <typename A, typename B>
auto operator*(const A& a, const Dual<B>& b) -> Dual<decltype(a * b.value)> {
    return {a * b.value, a * b.rate};
}
template <typename A, typename B>
auto operator*(const Dual<A>& a, const B& b) -> Dual<decltype(a.value * b)> {
    return {a.value * b, a.rate * b};
}
template <typename V>
Dual<V> operator+(const Dual<V>& a, const Dual<V>& b) {
    return {a.value + b.value, a.rate + b.rate};
}
template <typename V>
Dual<V> operator-(const Dual<V>& a, const Dual<V>& b) {
    return {a.value - b.value, a.rate - b.rate};
}
template <typename V>
Dual<V> operator-(const Dual<V>& a) {
    return {-a.value, -a.rate};
}
template <typename V>
Dual<V>& operator+=(Dual<V>& a, const Dual<V>& b) {
    return a = a + b;
}
template <typename V>
Dual<V> operator/(const Dual<V>& a, const Dual<V>& b) {
    const V over = V{} + 1 / b.value, ratio = a.value * over;
    return {ratio, (a.rate - ratio * b.rate) * over};
}

// sum += a b, each product in one instruction with its sum.
template <typename S, typename A, typename B>
void accumulate(S& sum, const A& a, const B& b) {
    if constexpr (IS_DUAL<S>) {
        sum.value += value(a) * value(b);
        if constexpr (IS_DUAL<B>) sum.rate += value(a) * b.rate;
        if constexpr (IS_DUAL<A>) sum.rate += a.rate * value(b);
    } else {
        sum += asked(a * b);
    }
}

template <typename X>
X add_real(X x, double constant) {
    if constexpr (IS_DUAL<X>)
        x.value += static_cast<std::decay_t<decltype(x.value[0])>>(constant);
    else
        x += static_cast<std::decay_t<decltype(x[0])>>(constant);
    return x;
}

template <typename T>
Vector<T> root_of(Vector<T> x) {
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) x[lane] = std::sqrt(x[lane]);
    return x;
}

template <typename N>
Many<N> root(Many<N> x) {
    if constexpr (IS_DUAL<N>) {
        const Vector<Real<N>> n = root_of<Real<N>>(x.value);
        return {n, x.rate / (Real<N>(2) * n)};
    } else {
        return root_of<N>(x);
    }
}

// The sum of all lanes.
template <typename N>
N sum_of(const Many<N>& x) {
    if constexpr (IS_DUAL<N>)
        return {total<Real<N>>(x.value), total<Real<N>>(x.rate)};
    else
        return total<N>(x);
}

// Rows of so many channels, `step` apart. The rates of a row of dual numbers are `rates` behind its values: they follow on
// them, or come after the values of all rows.
template <typename N>
struct Rows {
    Real<N>* data = nullptr;
    int64_t width = 0, step = 0, rates = 0;

    Rows() = default;
    Rows(Real<N>* data, int64_t width) : data(data), width(width), step(PARTS<N> * width), rates(width) {}
    Rows(Real<N>* data, int64_t width, int64_t all) : data(data), width(width), step(width), rates(all * width) {}

    explicit operator bool() const { return data; }
    Real<N>* row(int64_t r) const { return data + r * step; }
    Rows from(int64_t r) const {
        Rows rows = *this;
        if (data) rows.data = row(r);
        return rows;
    }
    bool in_turn() const { return step == PARTS<N> * width; }

    // The vector of channels from f on.
    Many<N> at(int64_t r, int64_t f) const {
        const Real<N>* here = row(r) + f;
        if constexpr (IS_DUAL<N>)
            return {vector(here, 0), vector(here + rates, 0)};
        else
            return vector(here, 0);
    }

    // With any kind of number that this one can hold.
    template <typename X>
    void put(int64_t r, int64_t f, const X& x) const {
        Real<N>* here = row(r) + f;
        vector(here, 0) = value(x);
        if constexpr (IS_DUAL<X>)
            vector(here + rates, 0) = x.rate;
        else if constexpr (IS_DUAL<N>)
            vector(here + rates, 0) = Vector<Real<N>>{};
    }

    template <typename X>
    void add(int64_t r, int64_t f, const X& x) const {
        put(r, f, at(r, f) + x);
    }

    template <typename A, typename B>
    void accumulate_at(int64_t r, int64_t f, const A& a, const B& b) const {
        Many<N> sum = at(r, f);
        accumulate(sum, a, b);
        put(r, f, sum);
    }
};

}  // namespace
