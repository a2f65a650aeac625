// PaiNN's messages and their derivatives by features and pairs, for one block of WIDTH channels of `PainnEngine`.

#pragma once

#include "engine.hpp"

namespace {

// Blocks of one layer and WIDTH channels, all (N, kinds, WIDTH): kinds are r, s and, but in the first layer, p = v ⊙ μ for
// senders, and q and μ for receivers. W = B C are the filters of a pair for r, s and v; `panels` are those of C.
template <typename T, int KINDS>
class PainnPairs {
  public:
    static constexpr int SENDER = KINDS == 3 ? 5 : 2, RECEIVER = 4;

    PainnPairs(const EngineArguments<T>& a, const Pairs<T>& pairs, const T* panels, int64_t panel)
        : a_(a), pairs_(pairs), panels_(panels), panel_(panel) {}

    // Adds the messages to the features of the receivers.
    void message(const T* z, T* out) const {
        alignas(64) T w[KINDS * SIZE];
        tiles([&](int64_t p0, int64_t n) {
            filters(pairs_.basis, p0, n, w);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p];
                const T *u = pairs_.u + 3 * p, minus[3] = {-u[0], -u[1], -u[2]};
                for (int k = 0; k < 2; ++k) {
                    send(w + t * WIDTH<T>, k, u, z + j * SENDER * WIDTH<T>, out + i * RECEIVER * WIDTH<T>);
                    send(w + t * WIDTH<T>, k, minus, z + i * SENDER * WIDTH<T>, out + j * RECEIVER * WIDTH<T>);
                }
            }
        });
    }

    // From derivatives g by the receivers' features to those by the senders', added to by_z (null: not wanted), and of
    // each pair by direction and length, written to by_pair (P, 4).
    void pullback(const T* z, const T* g, T* by_z, T* by_pair) const {
        alignas(64) T w[KINDS * SIZE], slope[KINDS * SIZE];
        tiles([&](int64_t p0, int64_t n) {
            filters(pairs_.basis, p0, n, w);
            filters(pairs_.slope, p0, n, slope);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p];
                const int64_t z_i = i * SENDER * WIDTH<T>, z_j = j * SENDER * WIDTH<T>;
                const T *u = pairs_.u + 3 * p, minus[3] = {-u[0], -u[1], -u[2]};
                const T *g_i = g + i * RECEIVER * WIDTH<T>, *g_j = g + j * RECEIVER * WIDTH<T>;
                Sums sums = {};
                for (int k = 0; k < 2; ++k) {
                    Vector<T> by_w[KINDS] = {};
                    pull(w + t * WIDTH<T>, k, u, T(1), z + z_j, g_i, by_z ? by_z + z_j : nullptr, by_w, sums);
                    pull(w + t * WIDTH<T>, k, minus, T(-1), z + z_i, g_j, by_z ? by_z + z_i : nullptr, by_w, sums);
                    for (int kind = 0; kind < KINDS; ++kind)
                        sums.length += by_w[kind] * vector(slope + t * WIDTH<T> + kind * SIZE, k);
                }
                for (int x = 0; x < 3; ++x) by_pair[4 * p + x] = total<T>(sums.along[x]);
                by_pair[4 * p + 3] = total<T>(sums.length);
            }
        });
    }

  private:
    static constexpr int64_t SIZE = PAIR_TILE * WIDTH<T>;

    struct Sums {
        Vector<T> along[3], length;
    };

    template <typename Body>
    void tiles(Body body) const {
        for (int64_t p0 = 0; p0 < a_.pairs; p0 += PAIR_TILE) body(p0, std::min(PAIR_TILE, a_.pairs - p0));
    }

    // W of a tile, (KINDS, PAIR_TILE, WIDTH), from radial functions; or its slope, from theirs.
    void filters(const T* basis, int64_t p0, int64_t n, T* w) const {
        for (int kind = 0; kind < KINDS; ++kind)
            product(basis + p0 * pairs_.row, pairs_.row, 1, panels_ + kind * panel_, WIDTH<T>, NOTHING<T>, 0,
                    w + kind * SIZE, WIDTH<T>, n, pairs_.row);
    }

    static void send(const T* w, int k, const T* u, const T* z, T* out) {
        const Vector<T> wr = vector(w, k) * vector(z, k);
        Vector<T> m[3] = {u[0] * wr, u[1] * wr, u[2] * wr};
        if constexpr (KINDS == 3)
            for (int x = 0; x < 3; ++x) m[x] += vector(w + 2 * SIZE, k) * vector(z + (2 + x) * WIDTH<T>, k);
        vector(out, k) += vector(w + SIZE, k) * vector(z + WIDTH<T>, k);
        for (int x = 0; x < 3; ++x) vector(out + (1 + x) * WIDTH<T>, k) += m[x];
    }

    static void pull(const T* w, int k, const T* u, T sign, const T* z, const T* g, T* by_z, Vector<T>* by_w, Sums& sums) {
        const Vector<T> q = vector(g, k), r = vector(z, k), wr = sign * vector(w, k) * r;
        Vector<T> m[3], e = {};
        for (int x = 0; x < 3; ++x) {
            m[x] = vector(g + (1 + x) * WIDTH<T>, k);
            e += u[x] * m[x];
            sums.along[x] += wr * m[x];
        }
        by_w[0] += r * e;
        by_w[1] += vector(z + WIDTH<T>, k) * q;
        if constexpr (KINDS == 3)
            for (int x = 0; x < 3; ++x) by_w[2] += vector(z + (2 + x) * WIDTH<T>, k) * m[x];
        if (!by_z) return;
        vector(by_z, k) += vector(w, k) * e;
        vector(by_z + WIDTH<T>, k) += vector(w + SIZE, k) * q;
        if constexpr (KINDS == 3)
            for (int x = 0; x < 3; ++x) vector(by_z + (2 + x) * WIDTH<T>, k) += vector(w + 2 * SIZE, k) * m[x];
    }

    const EngineArguments<T>& a_;
    const Pairs<T>& pairs_;
    const T* panels_;
    const int64_t panel_;
};

}  // namespace
