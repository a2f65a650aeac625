// PaiNN's messages and their derivatives by features, filters and pairs, for one block of WIDTH channels of `PainnNetwork`.

#pragma once

#include "network.hpp"

namespace {

// Blocks of one layer and WIDTH channels, all (N, kinds, WIDTH) of numbers: kinds are r, s and, but in the first layer,
// p = v ⊙ μ for senders, and q and μ for receivers. The senders of the first layer have no rates. W = B C are the filters
// of a pair for r, s and v; `panels` are those of C.
template <typename N, int KINDS>
class PainnPairs {
    using T = Real<N>;
    using V = Many<N>;
    using Z = std::conditional_t<KINDS == 3, N, T>;

  public:
    static constexpr int SENDER = (KINDS == 3 ? 5 : 2) * PARTS<Z>, RECEIVER = 4 * PARTS<N>;

    PainnPairs(const NetworkArguments<T>& a, const Motion<N>& pairs, const T* panels, int64_t panel)
        : a_(a), pairs_(pairs), panels_(panels), panel_(panel) {}

    // Adds the messages to the features of the receivers.
    void message(T* z, T* out) const {
        Tile w, slope;
        tiles([&](int64_t p0, int64_t n) {
            filters(pairs_.basis, p0, n, w);
            if constexpr (IS_DUAL<N>) filters(pairs_.slope, p0, n, slope);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p];
                const Edge forth(pairs_, p, T(1)), back(pairs_, p, T(-1));
                for (int k = 0; k < 2; ++k) {
                    const Filters f(w, slope, pairs_, p, t, k);
                    send(f.w, forth, k, sender(z, j), receiver(out, i));
                    send(f.w, back, k, sender(z, i), receiver(out, j));
                }
            }
        });
    }

    // From derivatives g by the receivers' features to those by the senders', added to by_z; by the weights C of the
    // filters, as asked for, added to by_c (KINDS, K + 1, WIDTH), with dual numbers only; and of each pair by direction and
    // length, written to by_pair (P, 4). What is null is not wanted.
    void pullback(T* z, T* g, T* by_z, T* by_c, N* by_pair) const {
        Tile w, slope, curvature, by_w, by_slope;
        const bool of_pairs = !IS_DUAL<N> || by_pair;
        tiles([&](int64_t p0, int64_t n) {
            filters(pairs_.basis, p0, n, w);
            filters(pairs_.slope, p0, n, slope);
            if (IS_DUAL<N> && of_pairs) filters(pairs_.curvature, p0, n, curvature);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p];
                const Edge forth(pairs_, p, T(1)), back(pairs_, p, T(-1));
                Sums sums = {};
                for (int k = 0; k < 2; ++k) {
                    const Filters f(w, slope, pairs_, p, t, k);
                    V by[KINDS] = {};
                    pull(f.w, forth, k, sender(z, j), receiver(g, i), sender(by_z, j), by, sums, of_pairs);
                    pull(f.w, back, k, sender(z, i), receiver(g, j), sender(by_z, i), by, sums, of_pairs);
                    if constexpr (IS_DUAL<N>)
                        for (int kind = 0; by_c && kind < KINDS; ++kind) {
                            vector(by_w.at(kind, t), k) = by[kind].rate;
                            vector(by_slope.at(kind, t), k) = pairs_.speed(p) * by[kind].value;
                        }
                    if (!of_pairs) continue;
                    const Filters falls(slope, curvature, pairs_, p, t, k);
                    for (int kind = 0; kind < KINDS; ++kind) accumulate(sums.length, by[kind], falls.w[kind]);
                }
                if (of_pairs) sums.write(by_pair + 4 * p);
            }
            if (!IS_DUAL<N> || !by_c) return;
            const int64_t row = pairs_.row, start = p0 * row;
            for (int kind = 0; kind < KINDS; ++kind) {
                T* to = by_c + kind * row * WIDTH<T>;
                add_product(pairs_.basis + start, 1, row, by_w.at(kind, 0), WIDTH<T>, to, WIDTH<T>, row, n);
                add_product(pairs_.slope + start, 1, row, by_slope.at(kind, 0), WIDTH<T>, to, WIDTH<T>, row, n);
            }
        });
    }

  private:
    // Something of each filter of a tile of pairs.
    struct Tile {
        alignas(64) T data[KINDS * PAIR_TILE * WIDTH<T>];
        T* at(int kind, int64_t t) { return data + (kind * PAIR_TILE + t) * WIDTH<T>; }
        const T* at(int kind, int64_t t) const { return data + (kind * PAIR_TILE + t) * WIDTH<T>; }
    };
    // One direction of a pair.
    struct Edge {
        N u[3];
        T sign;
        Edge(const Motion<N>& pairs, int64_t p, T sign) : sign(sign) {
            for (int x = 0; x < 3; ++x) u[x] = sign * pairs.direction(p, x);
        }
    };
    // The filters of a pair from their values and, for their rates, their derivatives by the length.
    struct Filters {
        V w[KINDS];
        Filters(const Tile& values, const Tile& slopes, const Motion<N>& pairs, int64_t p, int64_t t, int k) {
            for (int kind = 0; kind < KINDS; ++kind)
                if constexpr (IS_DUAL<N>)
                    w[kind] = {vector(values.at(kind, t), k), pairs.speed(p) * vector(slopes.at(kind, t), k)};
                else
                    w[kind] = vector(values.at(kind, t), k);
        }
    };
    struct Sums {
        V along[3], length;
        void write(N* to) const {
            for (int x = 0; x < 3; ++x) to[x] = sum_of<N>(along[x]);
            to[3] = sum_of<N>(length);
        }
    };

    static Rows<Z> sender(T* z, int64_t i) { return {z ? z + i * SENDER * WIDTH<T> : nullptr, WIDTH<T>}; }
    static Rows<N> receiver(T* g, int64_t i) { return {g + i * RECEIVER * WIDTH<T>, WIDTH<T>}; }

    template <typename Body>
    void tiles(Body body) const {
        for (int64_t p0 = 0; p0 < a_.pairs; p0 += PAIR_TILE) body(p0, std::min(PAIR_TILE, a_.pairs - p0));
    }

    // W of a tile from radial functions; or its derivatives by the length, from theirs.
    void filters(const T* basis, int64_t p0, int64_t n, Tile& w) const {
        for (int kind = 0; kind < KINDS; ++kind)
            product(basis + p0 * pairs_.row, pairs_.row, 1, panels_ + kind * panel_, WIDTH<T>, NOTHING<T>, 0,
                    w.at(kind, 0), WIDTH<T>, n, pairs_.row);
    }

    static void send(const V* w, const Edge& edge, int k, const Rows<Z>& z, const Rows<N>& out) {
        const int64_t f = k * Simd<T>::lanes;
        const V wr = w[0] * z.at(0, f);
        out.accumulate_at(0, f, w[1], z.at(1, f));
        for (int x = 0; x < 3; ++x) {
            V m = edge.u[x] * wr;
            if constexpr (KINDS == 3) accumulate(m, w[2], z.at(2 + x, f));
            out.add(1 + x, f, m);
        }
    }

    static void pull(const V* w, const Edge& edge, int k, const Rows<Z>& z, const Rows<N>& g, const Rows<Z>& by_z,
                     V* by_w, Sums& sums, bool of_pairs) {
        const int64_t f = k * Simd<T>::lanes;
        const auto r = z.at(0, f), s = z.at(1, f);
        const V q = g.at(0, f);
        V m[3], e = {};
        for (int x = 0; x < 3; ++x) m[x] = g.at(1 + x, f), accumulate(e, edge.u[x], m[x]);
        accumulate(by_w[0], e, r);
        accumulate(by_w[1], q, s);
        if constexpr (KINDS == 3)
            for (int x = 0; x < 3; ++x) accumulate(by_w[2], m[x], z.at(2 + x, f));
        if (of_pairs) {
            const V wr = edge.sign * (w[0] * r);
            for (int x = 0; x < 3; ++x) accumulate(sums.along[x], wr, m[x]);
        }
        if (!by_z) return;
        by_z.accumulate_at(0, f, w[0], e);
        by_z.accumulate_at(1, f, w[1], q);
        if constexpr (KINDS == 3)
            for (int x = 0; x < 3; ++x) by_z.accumulate_at(2 + x, f, w[2], m[x]);
    }

    const NetworkArguments<T>& a_;
    const Motion<N>& pairs_;
    const T* panels_;
    const int64_t panel_;
};

}  // namespace
