// The derivatives of PaiNN's form; arguments and names are those of painn.py.
//
// What is computed together is one member and WIDTH channels over all pairs: such items write to nothing in common, so they
// run on any number of threads with the same result; sums over channels are left in parts, one for each WIDTH channels,
// which the caller adds up.

#pragma once

#include "simd.hpp"

namespace {

constexpr int TILE = 16;  // pairs whose filters are held at once

// What is absent is null. Geometry is contiguous: u (M, P, 3), b (M, P, K), c (M, blocks, K, F).
template <typename T>
struct PainnArguments {
    int64_t atoms, pairs, members, channels, radial, threads;
    const int64_t *first, *second;
    const T *u, *b, *c;
    Features<T> s, v;  // r and s; p
    Features<T> gq, gm;
    const T *u2, *b2, *c2;
    Features<T> s2, v2;
    T *by_u, *by_b;  // (parts, M, P, 3 or K)
    T* by_c;
    Features<T> by_s, by_v, by_q, by_m;
};

template <typename T>
class Painn {
  public:
    Painn(const PainnArguments<T>& a, const Place& place) : a_(a), place_(place), kinds_(a.v.data ? 3 : 2) {
        z_ = packed(a.s, 2, a.v, 3);
        if (a.gq.data) g_ = packed(a.gq, 1, a.gm, 3);
    }

    void message() {
        const Packed<T> out = room(4);
        const T* c = weights(a_.c);
        T* w = scratch_.take(3 * TILE * WIDTH<T>);
        tiles([&](int64_t p0, int n) {
            filters(a_.b, c, p0, n, w, false);
            halves(p0, n, [&](int64_t i, int64_t j, const T* u, const T*, T sign, int t, int k) {
                const Sender z = sender(z_, j, k);
                const Vector<T> wr = sign * filter(w, 0, t, k) * z.r;
                Vector<T> m[3] = {u[0] * wr, u[1] * wr, u[2] * wr};
                if (kinds_ == 3)
                    for (int x = 0; x < 3; ++x) m[x] += filter(w, 2, t, k) * z.p[x];
                out.at(i, 0, k) += filter(w, 1, t, k) * z.s;
                for (int x = 0; x < 3; ++x) out.at(i, 1 + x, k) += m[x];
            });
        });
        unpack(out, 0, place_, a_.atoms, 1, a_.by_q);
        unpack(out, 1, place_, a_.atoms, 3, a_.by_m);
    }

    void pullback() {
        const Packed<T> by_z = a_.by_s.data || a_.by_v.data ? room(2 + 3) : Packed<T>();
        const T* c = weights(a_.c);
        T* w = scratch_.take(3 * TILE * WIDTH<T>);
        const Filters by = by_filters(c, nullptr);
        tiles([&](int64_t p0, int n) {
            filters(a_.b, c, p0, n, w, false);
            start(by);
            Along along[TILE] = {};
            halves(p0, n, [&](int64_t i, int64_t j, const T* u, const T*, T sign, int t, int k) {
                const Receiver g = receiver(i, k);
                const Vector<T> e = sign * (u[0] * g.m[0] + u[1] * g.m[1] + u[2] * g.m[2]);
                if (by.w || a_.by_u) {
                    const Sender z = sender(z_, j, k);
                    if (by.w) add_products(by.w, t, k, z, e, g);
                    if (a_.by_u) along[t].add(sign * filter(w, 0, t, k) * z.r, g);
                }
                if (by_z.data) {
                    by_z.at(j, 0, k) += filter(w, 0, t, k) * e;
                    by_z.at(j, 1, k) += filter(w, 1, t, k) * g.q;
                    if (kinds_ == 3)
                        for (int x = 0; x < 3; ++x) by_z.at(j, 2 + x, k) += filter(w, 2, t, k) * g.m[x];
                }
            });
            finish(by, along, p0, n);
        });
        write_weights(by);
        write_senders(by_z);
    }

    void second() {
        const bool exchanged = a_.b2 || a_.c2;
        const Packed<T> z2 = a_.s2.data ? packed(a_.s2, 2, a_.v2, 3) : Packed<T>(), by_g = room(4);
        const Packed<T> by_z = a_.by_s.data || a_.by_v.data ? room(2 + 3) : Packed<T>();
        const T *c = weights(a_.c), *c2 = a_.c2 ? weights(a_.c2) : nullptr;
        T *w = scratch_.take(3 * TILE * WIDTH<T>), *w2 = scratch_.zeros(3 * TILE * WIDTH<T>);
        const Filters by = by_filters(c, c2);
        tiles([&](int64_t p0, int n) {
            filters(a_.b, c, p0, n, w, false);
            if (a_.b2) filters(a_.b2, c, p0, n, w2, false);
            if (c2) filters(a_.b, c2, p0, n, w2, a_.b2);
            start(by);
            Along along[TILE] = {};
            halves(p0, n, [&](int64_t i, int64_t j, const T* u, const T* u2, T sign, int t, int k) {
                const Receiver g = receiver(i, k);
                const Sender z = sender(z_, j, k);
                const Vector<T> e = sign * (u[0] * g.m[0] + u[1] * g.m[1] + u[2] * g.m[2]);
                Vector<T> e2 = {};
                if (u2) e2 = sign * (u2[0] * g.m[0] + u2[1] * g.m[1] + u2[2] * g.m[2]);
                // W z with W or z exchanged.
                Sender wz = {};
                if (z2.data) {
                    const Sender y = sender(z2, j, k);
                    if (by.w) add_products(by.w, t, k, y, e, g);
                    add_weighted(wz, w, t, k, y);
                }
                if (by.w && u2) filter(by.w, 0, t, k) += z.r * e2;
                if (exchanged) {
                    if (by.w2) add_products(by.w2, t, k, z, e, g);
                    add_weighted(wz, w2, t, k, z);
                }
                if (a_.by_u) along[t].add(sign * wz.r, g);
                if (by_z.data) {
                    by_z.at(j, 0, k) += filter(w2, 0, t, k) * e + filter(w, 0, t, k) * e2;
                    by_z.at(j, 1, k) += filter(w2, 1, t, k) * g.q;
                    if (kinds_ == 3)
                        for (int x = 0; x < 3; ++x) by_z.at(j, 2 + x, k) += filter(w2, 2, t, k) * g.m[x];
                }
                by_g.at(i, 0, k) += wz.s;
                const Vector<T> wr = sign * filter(w, 0, t, k) * z.r;
                for (int x = 0; x < 3; ++x) {
                    Vector<T> m = sign * u[x] * wz.r + wz.p[x];
                    if (u2) m += u2[x] * wr;
                    by_g.at(i, 1 + x, k) += m;
                }
            });
            finish(by, along, p0, n);
        });
        write_weights(by);
        write_senders(by_z);
        unpack(by_g, 0, place_, a_.atoms, 1, a_.by_q);
        unpack(by_g, 1, place_, a_.atoms, 3, a_.by_m);
    }

  private:
    struct Sender {
        Vector<T> r, s, p[3];
    };
    struct Receiver {
        Vector<T> q, m[3];
    };
    // Derivative by the directions of one pair.
    struct Along {
        Vector<T> x[3];
        void add(Vector<T> wr, const Receiver& g) {
            for (int k = 0; k < 3; ++k) x[k] += wr * g.m[k];
        }
    };
    // Derivatives by filters of a tile, and what becomes of them: w is that by W, w2 that by its exchanged twin.
    struct Filters {
        T *w = nullptr, *w2 = nullptr;
        T *c_t = nullptr, *c2_t = nullptr;  // (kinds, WIDTH, K rounded up)
        T* by_b = nullptr;                  // (TILE, K rounded up)
        T* by_c = nullptr;                  // (kinds, K, WIDTH)
    };

    Packed<T> room(int blocks) { return {scratch_.zeros(a_.atoms * blocks * WIDTH<T>), blocks}; }

    Packed<T> packed(const Features<T>& x, int count, const Features<T>& y, int more) {
        const int blocks = count + (y.data ? more : 0);
        const int64_t size = a_.atoms * blocks * WIDTH<T>;
        const Packed<T> both = {place_.width == WIDTH<T> ? scratch_.take(size) : scratch_.zeros(size), blocks};
        pack(x, place_, a_.atoms, count, both, 0);
        if (y.data) pack(y, place_, a_.atoms, more, both, count);
        return both;
    }

    void write_senders(const Packed<T>& by_z) const {
        if (a_.by_s.data) unpack(by_z, 0, place_, a_.atoms, 2, a_.by_s);
        if (a_.by_v.data) unpack(by_z, 2, place_, a_.atoms, 3, a_.by_v);
    }

    template <typename Body>
    void tiles(Body body) const {
        for (int64_t p0 = 0; p0 < a_.pairs; p0 += TILE)
            body(p0, static_cast<int>(std::min<int64_t>(TILE, a_.pairs - p0)));
    }

    // Both directions of each pair, the second with the sign of its unit vector turned.
    template <typename Body>
    void halves(int64_t p0, int n, Body body) const {
        for (int t = 0; t < n; ++t) {
            const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p], place = 3 * (place_.member * a_.pairs + p);
            const T *u = a_.u + place, *u2 = a_.u2 ? a_.u2 + place : nullptr;
            for (int k = 0; k < 2; ++k) {
                body(i, j, u, u2, T(1), t, k);
                body(j, i, u, u2, T(-1), t, k);
            }
        }
    }

    Vector<T>& filter(T* w, int kind, int t, int k) const { return vector(w + (kind * TILE + t) * WIDTH<T>, k); }

    Sender sender(const Packed<T>& z, int64_t j, int k) const {
        Sender one = {z.at(j, 0, k), z.at(j, 1, k), {}};
        if (kinds_ == 3)
            for (int x = 0; x < 3; ++x) one.p[x] = z.at(j, 2 + x, k);
        return one;
    }

    Receiver receiver(int64_t i, int k) const {
        return {g_.at(i, 0, k), {g_.at(i, 1, k), g_.at(i, 2, k), g_.at(i, 3, k)}};
    }

    void add_products(T* w, int t, int k, const Sender& z, Vector<T> e, const Receiver& g) const {
        filter(w, 0, t, k) += z.r * e;
        filter(w, 1, t, k) += z.s * g.q;
        if (kinds_ == 3) filter(w, 2, t, k) += z.p[0] * g.m[0] + z.p[1] * g.m[1] + z.p[2] * g.m[2];
    }

    void add_weighted(Sender& wz, T* w, int t, int k, const Sender& z) const {
        wz.r += filter(w, 0, t, k) * z.r;
        wz.s += filter(w, 1, t, k) * z.s;
        if (kinds_ == 3)
            for (int x = 0; x < 3; ++x) wz.p[x] += filter(w, 2, t, k) * z.p[x];
    }

    // The item's columns of C, (kinds, K, WIDTH), with zeros beyond the last channel.
    const T* weights(const T* c) {
        const int64_t lines = kinds_ * a_.radial;
        T* own = scratch_.zeros(lines * WIDTH<T>);
        for (int64_t l = 0; l < lines; ++l)
            std::memcpy(own + l * WIDTH<T>, c + (place_.member * lines + l) * a_.channels + place_.channel,
                        place_.width * sizeof(T));
        return own;
    }

    // W = B C of a tile, (kinds, TILE, WIDTH).
    void filters(const T* b, const T* c, int64_t p0, int n, T* w, bool add) const {
        const int k = static_cast<int>(a_.radial);
        if (!add) std::memset(w, 0, 3 * TILE * WIDTH<T> * sizeof(T));
        for (int kind = 0; kind < kinds_; ++kind)
            add_product(b + (place_.member * a_.pairs + p0) * k, k, 1, c + kind * k * WIDTH<T>, WIDTH<T>,
                    w + kind * TILE * WIDTH<T>, WIDTH<T>, n, k);
    }

    int rounded() const { return (static_cast<int>(a_.radial) + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>; }

    T* transposed(const T* c) {
        T* out = scratch_.zeros(kinds_ * WIDTH<T> * rounded());
        for (int kind = 0; kind < kinds_; ++kind)
            for (int k = 0; k < a_.radial; ++k)
                for (int f = 0; f < WIDTH<T>; ++f)
                    out[(kind * WIDTH<T> + f) * rounded() + k] = c[(kind * a_.radial + k) * WIDTH<T> + f];
        return out;
    }

    Filters by_filters(const T* c, const T* c2) {
        Filters by;
        if (!a_.by_b && !a_.by_c) return by;
        by.w = scratch_.take(3 * TILE * WIDTH<T>);
        if (a_.b2 || c2) by.w2 = scratch_.take(3 * TILE * WIDTH<T>);
        if (a_.by_b) {
            by.c_t = transposed(c);
            if (c2) by.c2_t = transposed(c2);
            by.by_b = scratch_.take(TILE * rounded());
        }
        if (a_.by_c) by.by_c = scratch_.zeros(kinds_ * a_.radial * WIDTH<T>);
        return by;
    }

    void start(const Filters& by) const {
        if (by.w) std::memset(by.w, 0, 3 * TILE * WIDTH<T> * sizeof(T));
        if (by.w2) std::memset(by.w2, 0, 3 * TILE * WIDTH<T> * sizeof(T));
    }

    // From a tile's derivatives by filters to those by B and C, and from those along its pairs to those by u.
    void finish(const Filters& by, const Along* along, int64_t p0, int n) const {
        const int k = static_cast<int>(a_.radial);
        const int64_t here = place_.member * a_.pairs + p0, place = place_.channel / WIDTH<T> * a_.members * a_.pairs + here;
        if (a_.by_u)
            for (int t = 0; t < n; ++t)
                for (int x = 0; x < 3; ++x) a_.by_u[3 * (place + t) + x] = total<T>(along[t].x[x]);
        if (by.by_b) {
            const int stride = rounded();
            std::memset(by.by_b, 0, TILE * stride * sizeof(T));
            for (int column = 0; column < stride; column += WIDTH<T>)
                for (int kind = 0; kind < kinds_; ++kind) {
                    const int w = kind * TILE * WIDTH<T>, c = kind * WIDTH<T> * stride + column;
                    add_product(by.w + w, WIDTH<T>, 1, by.c_t + c, stride, by.by_b + column, stride, n, WIDTH<T>);
                    if (by.c2_t)
                        add_product(by.w2 + w, WIDTH<T>, 1, by.c2_t + c, stride, by.by_b + column, stride, n, WIDTH<T>);
                }
            for (int t = 0; t < n; ++t) std::memcpy(a_.by_b + (place + t) * k, by.by_b + t * stride, k * sizeof(T));
        }
        if (by.by_c)
            for (int kind = 0; kind < kinds_; ++kind) {
                const int w = kind * TILE * WIDTH<T>;
                T* out = by.by_c + kind * k * WIDTH<T>;
                add_product(a_.b + here * k, 1, k, by.w + w, WIDTH<T>, out, WIDTH<T>, k, n);
                if (by.w2 && a_.b2) add_product(a_.b2 + here * k, 1, k, by.w2 + w, WIDTH<T>, out, WIDTH<T>, k, n);
            }
    }

    void write_weights(const Filters& by) const {
        if (!by.by_c) return;
        const int64_t lines = kinds_ * a_.radial;
        for (int64_t l = 0; l < lines; ++l)
            std::memcpy(a_.by_c + (place_.member * lines + l) * a_.channels + place_.channel, by.by_c + l * WIDTH<T>,
                        place_.width * sizeof(T));
    }

    const PainnArguments<T>& a_;
    const Place place_;
    const int kinds_;
    Scratch<T> scratch_;
    Packed<T> z_, g_;
};

}  // namespace
