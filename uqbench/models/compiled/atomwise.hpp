// Functions of each atom's channels, with their first and second derivatives: activations, PaiNN's norm and mixing.
// Arguments and names are those of atomwise.py.

#pragma once

#include "layers.hpp"

namespace {

// Channels [start, start + lanes) of a row, or fewer at its end.
template <typename T>
Vector<T> part(const T* row, int64_t start, int64_t channels) {
    if (start + Simd<T>::lanes <= channels) return *reinterpret_cast<const typename Simd<T>::Loose*>(row + start);
    Vector<T> value = {};
    std::memcpy(&value, row + start, (channels - start) * sizeof(T));
    return value;
}

template <typename T>
void put(T* row, int64_t start, int64_t channels, Vector<T> value) {
    if (start + Simd<T>::lanes <= channels)
        *reinterpret_cast<typename Simd<T>::Loose*>(row + start) = value;
    else
        std::memcpy(row + start, &value, (channels - start) * sizeof(T));
}

// What is absent is null; everything is contiguous, with `count` elements.
template <typename T>
struct ActivationArguments {
    int64_t count, kind, threads;
    const T *h, *g, *c;
    T *value, *by_h, *by_g;
};

// value = act(h); by_h = g act'(h); or, with a cotangent c of the latter, by_g = c act'(h) and by_h = c g act''(h).
template <typename T>
void activation(const ActivationArguments<T>& a) {
    const Activation kind = static_cast<Activation>(a.kind);
    pieces(static_cast<int>(a.threads), a.count, 8192, [&](int64_t start, int64_t stop) {
        for (int64_t k = start; k < stop; k += Simd<T>::lanes) {
            const Vector<T> h = part(a.h, k, a.count);
            if (a.value && kind == Activation::shifted_softplus) {
                put(a.value, k, a.count, softplus<T>(h) - static_cast<T>(0.6931471805599453));
                continue;
            }
            const Vector<T> s = T(1) / (T(1) + exponential<T>(-h));
            if (a.value) {
                put(a.value, k, a.count, h * s);
                continue;
            }
            const bool silu = kind == Activation::silu;
            const Vector<T> first = silu ? s * (T(1) + h * (T(1) - s)) : s, g = part(a.g, k, a.count);
            if (!a.c) {
                put(a.by_h, k, a.count, g * first);
                continue;
            }
            const Vector<T> c = part(a.c, k, a.count), both = s * (T(1) - s);
            put(a.by_g, k, a.count, c * first);
            put(a.by_h, k, a.count, c * g * (silu ? both * (T(2) + h * (T(1) - T(2) * s)) : both));
        }
    });
}

// Features (M, N, F) but v and w, (M, 3, N, F), and what belongs to them.
template <typename T>
struct MixArguments {
    int64_t atoms, members, channels, threads;
    Features<T> b, v, w, d, gq, gm, b2, v2, w2, d2;
    Features<T> by_b, by_v, by_w, by_d, by_q, by_m;
};

template <typename T>
struct Triple {
    Vector<T> x[3] = {};
};

template <typename T>
Vector<T> dot(const Triple<T>& a, const Triple<T>& b) {
    return a.x[0] * b.x[0] + a.x[1] * b.x[1] + a.x[2] * b.x[2];
}

// One vector of channels of one atom.
template <typename T>
struct Here {
    int64_t member, atom, start, channels;

    T* row(const Features<T>& f, int x) const { return f.data + member * f.member + x * f.block + atom * f.atom; }
    Vector<T> one(const Features<T>& f) const { return part<T>(row(f, 0), start, channels); }
    Triple<T> three(const Features<T>& f) const {
        Triple<T> t;
        for (int x = 0; x < 3; ++x) t.x[x] = part<T>(row(f, x), start, channels);
        return t;
    }
    void write(const Features<T>& f, Vector<T> value) const {
        if (f.data) put<T>(row(f, 0), start, channels, value);
    }
    void write(const Features<T>& f, const Triple<T>& t) const {
        if (f.data)
            for (int x = 0; x < 3; ++x) put<T>(row(f, x), start, channels, t.x[x]);
    }
};

// a s + b t
template <typename T>
Triple<T> sum(const Triple<T>& a, Vector<T> s, const Triple<T>& b, Vector<T> t) {
    Triple<T> out;
    for (int x = 0; x < 3; ++x) out.x[x] = a.x[x] * s + b.x[x] * t;
    return out;
}

template <typename T, typename Arguments, typename Body>
void each_atom(const Arguments& a, Body body) {
    pieces(static_cast<int>(a.threads), a.members * a.atoms, 32, [&](int64_t start, int64_t stop) {
        for (int64_t n = start; n < stop; ++n)
            for (int64_t f = 0; f < a.channels; f += Simd<T>::lanes) body(Here<T>{n / a.atoms, n % a.atoms, f, a.channels});
    });
}

template <typename T>
void mix_message(const MixArguments<T>& a) {
    each_atom<T>(a, [&](const Here<T>& at) {
        const Triple<T> v = at.three(a.v), w = at.three(a.w);
        at.write(a.by_q, at.one(a.b) * dot(v, w));
        if (a.d.data) at.write(a.by_m, sum(w, at.one(a.d), w, Vector<T>{}));
    });
}

template <typename T>
void mix_pullback(const MixArguments<T>& a) {
    each_atom<T>(a, [&](const Here<T>& at) {
        const Triple<T> v = at.three(a.v), w = at.three(a.w);
        const Vector<T> b = at.one(a.b), g = at.one(a.gq), gb = g * b;
        Triple<T> gm;
        Vector<T> d = {};
        if (a.d.data) gm = at.three(a.gm), d = at.one(a.d);
        at.write(a.by_b, g * dot(v, w));
        at.write(a.by_v, sum(w, gb, w, Vector<T>{}));
        at.write(a.by_w, sum(v, gb, gm, d));
        at.write(a.by_d, dot(gm, w));
    });
}

template <typename T>
void mix_second(const MixArguments<T>& a) {
    each_atom<T>(a, [&](const Here<T>& at) {
        const Triple<T> v = at.three(a.v), w = at.three(a.w), v2 = at.three(a.v2), w2 = at.three(a.w2);
        const Vector<T> b = at.one(a.b), b2 = at.one(a.b2), g = at.one(a.gq), crossed = dot(v2, w) + dot(w2, v);
        at.write(a.by_q, b2 * dot(v, w) + b * crossed);
        at.write(a.by_b, g * crossed);
        at.write(a.by_v, sum(w, g * b2, w2, g * b));
        Triple<T> by_w = sum(v, g * b2, v2, g * b);
        if (a.d.data) {
            const Triple<T> gm = at.three(a.gm);
            const Vector<T> d2 = at.one(a.d2);
            by_w = sum(by_w, Vector<T>{} + T(1), gm, d2);
            at.write(a.by_m, sum(w2, at.one(a.d), w, d2));
            at.write(a.by_d, dot(w2, gm));
        }
        at.write(a.by_w, by_w);
    });
}

// The norm n(v) = sqrt(v · v + ε), its derivative g v / n as by_v, and those of the latter with a cotangent v2.
template <typename T>
void norm(const MixArguments<T>& a) {
    each_atom<T>(a, [&](const Here<T>& at) {
        const Triple<T> v = at.three(a.v);
        Vector<T> n = dot(v, v) + static_cast<T>(EPSILON);
        for (int lane = 0; lane < Simd<T>::lanes; ++lane) n[lane] = std::sqrt(n[lane]);
        if (!a.gq.data) return at.write(a.by_q, n);
        const Vector<T> over = T(1) / n, g = at.one(a.gq) * over;
        if (!a.v2.data) return at.write(a.by_v, sum(v, g, v, Vector<T>{}));
        const Triple<T> c = at.three(a.v2);
        const Vector<T> along = dot(c, v) * over;
        at.write(a.by_q, along);
        at.write(a.by_v, sum(c, g, v, -g * along * over));
    });
}

}  // namespace
