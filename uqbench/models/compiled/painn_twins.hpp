// PaiNN's messages with their rates of change, and the derivatives of both, for one block of WIDTH channels of
// `PainnGradient`.

#pragma once

#include "engine.hpp"

namespace {

// Blocks of one layer and WIDTH channels, (N, kinds, WIDTH). Senders have r, s, p and their rates; in the first layer there
// is no p = v ⊙ μ and the rates are zero: they have r and s alone. Receivers have q, μ and their rates.
template <typename T, int KINDS>
class PainnTwins {
  public:
    static constexpr int SENDER = KINDS == 3 ? 10 : 2, RECEIVER = 8;
    static constexpr int PER_PAIR = 8;

    PainnTwins(const EngineArguments<T>& a, const Pairs<T>& pairs, const T* rate, const T* turn, const T* panels,
               int64_t panel)
        : a_(a), pairs_(pairs), rate_(rate), turn_(turn), panels_(panels), panel_(panel) {}

    // Adds the messages to the features of the receivers.
    void message(const T* z, T* out) const {
        alignas(64) T w[KINDS * SIZE], slope[KINDS * SIZE];
        tiles([&](int64_t p0, int64_t n) {
            filters(pairs_.basis, p0, n, w);
            filters(pairs_.slope, p0, n, slope);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t i = a_.first[p0 + t], j = a_.second[p0 + t];
                const Edge forth(*this, p0 + t, T(1)), back(*this, p0 + t, T(-1));
                for (int k = 0; k < 2; ++k) {
                    const Filters f(w + t * WIDTH<T>, slope + t * WIDTH<T>, forth.rate, k);
                    send(f, forth, k, z + j * SENDER * WIDTH<T>, out + i * RECEIVER * WIDTH<T>);
                    send(f, back, k, z + i * SENDER * WIDTH<T>, out + j * RECEIVER * WIDTH<T>);
                }
            }
        });
    }

    // From derivatives g by the receivers' features to those by the senders', added to by_z, by the weights C of the
    // filters, added to by_c (KINDS, K + 1, WIDTH), and by each pair's direction, length and their rates, written to by_pair
    // (P, PER_PAIR). What is null is not wanted.
    void pullback(const T* z, const T* g, T* by_z, T* by_c, T* by_pair) const {
        alignas(64) T w[KINDS * SIZE], slope[KINDS * SIZE], curvature[KINDS * SIZE], by_w[KINDS * SIZE], by_rate[KINDS * SIZE];
        tiles([&](int64_t p0, int64_t n) {
            filters(pairs_.basis, p0, n, w);
            filters(pairs_.slope, p0, n, slope);
            if (by_pair) filters(pairs_.curvature, p0, n, curvature);
            for (int64_t t = 0; t < n; ++t) {
                const int64_t p = p0 + t, i = a_.first[p], j = a_.second[p];
                const Edge forth(*this, p, T(1)), back(*this, p, T(-1));
                const int64_t z_i = i * SENDER * WIDTH<T>, z_j = j * SENDER * WIDTH<T>;
                const T *g_i = g + i * RECEIVER * WIDTH<T>, *g_j = g + j * RECEIVER * WIDTH<T>;
                Sums sums = {};
                for (int k = 0; k < 2; ++k) {
                    const Filters f(w + t * WIDTH<T>, slope + t * WIDTH<T>, forth.rate, k);
                    ByFilters by = {};
                    pull(f, forth, k, z + z_j, g_i, by_z ? by_z + z_j : nullptr, by, by_pair ? &sums : nullptr);
                    pull(f, back, k, z + z_i, g_j, by_z ? by_z + z_i : nullptr, by, by_pair ? &sums : nullptr);
                    for (int kind = 0; kind < KINDS; ++kind) {
                        const int64_t at = kind * SIZE + t * WIDTH<T>;
                        if (by_c) vector(by_w + at, k) = by.w[kind], vector(by_rate + at, k) = forth.rate * by.rate[kind];
                        if (!by_pair) continue;
                        sums.length += by.w[kind] * vector(slope + at, k);
                        sums.length += forth.rate * by.rate[kind] * vector(curvature + at, k);
                        sums.rate += by.rate[kind] * vector(slope + at, k);
                    }
                }
                if (by_pair) write(sums, by_pair + PER_PAIR * p);
            }
            const int64_t row = pairs_.row, start = p0 * row;
            for (int kind = 0; by_c && kind < KINDS; ++kind) {
                T* to = by_c + kind * row * WIDTH<T>;
                add_product(pairs_.basis + start, 1, row, by_w + kind * SIZE, WIDTH<T>, to, WIDTH<T>, row, n);
                add_product(pairs_.slope + start, 1, row, by_rate + kind * SIZE, WIDTH<T>, to, WIDTH<T>, row, n);
            }
        });
    }

  private:
    static constexpr int64_t SIZE = PAIR_TILE * WIDTH<T>;

    // One direction of a pair.
    struct Edge {
        T u[3], turn[3], sign, rate;
        Edge(const PainnTwins& of, int64_t p, T sign) : sign(sign), rate(of.rate_[p]) {
            for (int x = 0; x < 3; ++x) u[x] = sign * of.pairs_.u[3 * p + x], turn[x] = sign * of.turn_[3 * p + x];
        }
    };
    // W and its rate.
    struct Filters {
        Vector<T> w[KINDS], rate[KINDS];
        Filters(const T* values, const T* slopes, T speed, int k) {
            for (int kind = 0; kind < KINDS; ++kind)
                w[kind] = vector(values + kind * SIZE, k), rate[kind] = speed * vector(slopes + kind * SIZE, k);
        }
    };
    struct ByFilters {
        Vector<T> w[KINDS], rate[KINDS];
    };
    struct Sums {
        Vector<T> u[3], turn[3], length, rate;
    };

    template <typename Body>
    void tiles(Body body) const {
        for (int64_t p0 = 0; p0 < a_.pairs; p0 += PAIR_TILE) body(p0, std::min(PAIR_TILE, a_.pairs - p0));
    }

    // W = B C of a tile, (KINDS, PAIR_TILE, WIDTH), from radial functions; or its derivatives, from theirs.
    void filters(const T* basis, int64_t p0, int64_t n, T* w) const {
        for (int kind = 0; kind < KINDS; ++kind)
            product(basis + p0 * pairs_.row, pairs_.row, 1, panels_ + kind * panel_, WIDTH<T>, NOTHING<T>, 0,
                    w + kind * SIZE, WIDTH<T>, n, pairs_.row);
    }

    static const Vector<T>& row(const T* features, int kind, int k) { return vector(features + kind * WIDTH<T>, k); }
    static Vector<T>& row(T* features, int kind, int k) { return vector(features + kind * WIDTH<T>, k); }

    static void send(const Filters& f, const Edge& edge, int k, const T* z, T* out) {
        const Vector<T> r = row(z, 0, k), s = row(z, 1, k), wr = f.w[0] * r;
        Vector<T> wr_rate = f.rate[0] * r, q_rate = f.rate[1] * s;
        if constexpr (KINDS == 3) wr_rate += f.w[0] * row(z, 5, k), q_rate += f.w[1] * row(z, 6, k);
        row(out, 0, k) += f.w[1] * s;
        row(out, 4, k) += q_rate;
        for (int x = 0; x < 3; ++x) {
            Vector<T> m = edge.u[x] * wr, m_rate = edge.turn[x] * wr + edge.u[x] * wr_rate;
            if constexpr (KINDS == 3) {
                const Vector<T> p = row(z, 2 + x, k);
                m += f.w[2] * p;
                m_rate += f.rate[2] * p + f.w[2] * row(z, 7 + x, k);
            }
            row(out, 1 + x, k) += m;
            row(out, 5 + x, k) += m_rate;
        }
    }

    static void pull(const Filters& f, const Edge& edge, int k, const T* z, const T* g, T* by_z, ByFilters& by, Sums* sums) {
        const Vector<T> r = row(z, 0, k), s = row(z, 1, k), gq = row(g, 0, k), gq_rate = row(g, 4, k);
        Vector<T> gm[3], gm_rate[3], e = {}, e_rate = {};  // derivatives by W_r r and its rate
        for (int x = 0; x < 3; ++x) {
            gm[x] = row(g, 1 + x, k), gm_rate[x] = row(g, 5 + x, k);
            e += edge.u[x] * gm[x] + edge.turn[x] * gm_rate[x];
            e_rate += edge.u[x] * gm_rate[x];
        }
        by.w[0] += e * r, by.rate[0] += e_rate * r;
        by.w[1] += gq * s, by.rate[1] += gq_rate * s;
        if constexpr (KINDS == 3) {
            by.w[0] += e_rate * row(z, 5, k), by.w[1] += gq_rate * row(z, 6, k);
            for (int x = 0; x < 3; ++x) {
                const Vector<T> p = row(z, 2 + x, k);
                by.w[2] += gm[x] * p + gm_rate[x] * row(z, 7 + x, k);
                by.rate[2] += gm_rate[x] * p;
            }
        }
        if (sums) {
            const Vector<T> wr = edge.sign * f.w[0] * r;
            Vector<T> wr_rate = f.rate[0] * r;
            if constexpr (KINDS == 3) wr_rate += f.w[0] * row(z, 5, k);
            for (int x = 0; x < 3; ++x) {
                sums->u[x] += wr * gm[x] + edge.sign * wr_rate * gm_rate[x];
                sums->turn[x] += wr * gm_rate[x];
            }
        }
        if (!by_z) return;
        row(by_z, 0, k) += f.w[0] * e + f.rate[0] * e_rate;
        row(by_z, 1, k) += f.w[1] * gq + f.rate[1] * gq_rate;
        if constexpr (KINDS == 3) {
            row(by_z, 5, k) += f.w[0] * e_rate;
            row(by_z, 6, k) += f.w[1] * gq_rate;
            for (int x = 0; x < 3; ++x) {
                row(by_z, 2 + x, k) += f.w[2] * gm[x] + f.rate[2] * gm_rate[x];
                row(by_z, 7 + x, k) += f.w[2] * gm_rate[x];
            }
        }
    }

    static void write(const Sums& sums, T* to) {
        for (int x = 0; x < 3; ++x) to[x] = total<T>(sums.u[x]), to[3 + x] = total<T>(sums.turn[x]);
        to[6] = total<T>(sums.length), to[7] = total<T>(sums.rate);
    }

    const EngineArguments<T>& a_;
    const Pairs<T>& pairs_;
    const T *rate_, *turn_, *panels_;
    const int64_t panel_;
};

}  // namespace
