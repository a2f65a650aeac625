// Derivatives of energies, forces and latents together, by the weights and the positions.
//
// With cotangents c of the energies, g of the forces F = -dE/dx and l of the latents, what is differentiated is
// S = Σ c E + Σ g F + Σ l ξ = Σ c E + dE(-g) + Σ l ξ, where dE(-g) is how the energies change as the positions move by
// -g. So every quantity y of the network comes with its rate of change y' (a twin), and on the way back with two
// derivatives, that of S by y and that of S by y'; the latter is that of the energy by y. The rows of twins follow on one
// another: (N, 2, ...), first y (or the derivative by y), then y' (or the derivative by y').

#pragma once

#include "engine.hpp"

namespace {

template <typename T>
struct Curve {
    Vector<T> value, slope, curvature;
};

template <typename T>
Curve<T> curve(Activation act, Vector<T> x) {
    const Vector<T> s = T(1) / (T(1) + exponential<T>(-x)), both = s * (T(1) - s);
    if (act == Activation::silu) return {x * s, s + x * both, both * (T(2) + x * (T(1) - T(2) * s))};
    return {softplus<T>(x) - static_cast<T>(0.6931471805599453), s, both};
}

// What the gradients of all networks have in common.
template <typename T>
class Gradient : protected Engine<T> {
    using Base = Engine<T>;

  protected:
    using Base::a_, Base::f_, Base::fp_, Base::member_, Base::n_, Base::pairs_, Base::scratch_, Base::threads_;

    Gradient(const EngineArguments<T>& a, const Pairs<T>& pairs, const int64_t* species, int64_t member, int threads,
             int64_t weights_of_network)
        : Base(a, pairs, species, member, threads),
          by_weights_(a.by_weights ? a.by_weights + member * weights_of_network : nullptr) {
        rate_ = scratch_.zeros(a.pairs), turn_ = scratch_.zeros(3 * a.pairs), by_pair_ = scratch_.zeros(8 * a.pairs);
        if (!a.g_forces) return;
        const T* g = a.g_forces + 3 * member * n_;
        for (int64_t p = 0; p < a.pairs; ++p) {
            const T *u = pairs_.u + 3 * p, *g_i = g + 3 * a.first[p], *g_j = g + 3 * a.second[p];
            for (int x = 0; x < 3; ++x) rate_[p] += u[x] * (g_i[x] - g_j[x]);
            for (int x = 0; x < 3; ++x) turn_[3 * p + x] = (g_i[x] - g_j[x] - rate_[p] * u[x]) / pairs_.distance[p];
        }
    }

    // Whether the derivative by the weight with this number is wanted; and where it goes.
    T* by_weight(int64_t k) const { return by_weights_ ? by_weights_[k] : nullptr; }

    static Linear<T> without_bias(const Linear<T>& l) { return {l.panels, nullptr, l.inner, l.columns}; }

    // Of n twins (n, 2, columns): y = x W + bias and y' = x' W.
    static void apply_twins(const Linear<T>& l, const T* x, int64_t x_row, T* y, int64_t n, bool add = false) {
        apply(without_bias(l), x, x_row, y, l.columns, 2 * n, add);
        for (int64_t i = 0; l.bias && i < n; ++i)
            for (int64_t f = 0; f < l.columns; f += Simd<T>::lanes)
                vector(y + 2 * i * l.columns + f, 0) += vector(l.bias + f, 0);
    }

    // a = act(h) and a' = act'(h) h'.
    static void activate_twins(Activation act, const T* h, T* a, int64_t n, int64_t columns) {
        each_vector(n, columns, [&](int64_t at, int64_t twin) {
            const Curve<T> c = curve<T>(act, vector(h + at, 0));
            vector(a + at, 0) = c.value;
            vector(a + twin, 0) = c.slope * vector(h + twin, 0);
        });
    }

    // From derivatives by a and a' to those by h and h', in place.
    static void chain_twins(Activation act, const T* h, T* by, int64_t n, int64_t columns) {
        each_vector(n, columns, [&](int64_t at, int64_t twin) {
            const Curve<T> c = curve<T>(act, vector(h + at, 0));
            const Vector<T> g = vector(by + twin, 0);
            vector(by + at, 0) = vector(by + at, 0) * c.slope + g * c.curvature * vector(h + twin, 0);
            vector(by + twin, 0) = g * c.slope;
        });
    }

    // Derivatives by the features before the head, (N, 2, Fp), from the features.
    void head_back(const Heads<T>& heads, const T* q, T* by_q, int64_t first_weight) {
        const Activation act = static_cast<Activation>(a_.head_activation);
        const int64_t hp = heads.energy.in.columns;
        const T* out = heads.energy.out_t.panels;  // of a single row: as it is
        T *h = scratch_.take(2 * n_ * hp), *a = scratch_.take(2 * n_ * hp), *by = scratch_.take(2 * n_ * hp);
        const T* g_energy = a_.g_energy ? a_.g_energy + member_ * a_.systems : nullptr;
        T* g = scratch_.zeros(2 * n_);  // derivatives by an atom's energy and its rate
        for (int64_t i = 0; i < n_; ++i) {
            if (g_energy) g[2 * i] = g_energy[a_.system[i]];
            g[2 * i + 1] = 1;
        }
        this->each_atom([&](int64_t start, int64_t stop, Scratch<T>&) {
            const int64_t n = stop - start;
            T *here = h + 2 * start * hp, *by_here = by + 2 * start * hp;
            apply_twins(heads.energy.in, q + 2 * start * fp_, fp_, here, n);
            activate_twins(act, here, a + 2 * start * hp, n, hp);
            for (int64_t r = 0; r < 2 * n; ++r)
                for (int64_t f = 0; f < hp; f += Simd<T>::lanes)
                    vector(by_here + r * hp + f, 0) = g[2 * start + r] * vector(out + f, 0);
            chain_twins(act, here, by_here, n, hp);
            apply(heads.energy.in_t, by_here, hp, by_q + 2 * start * fp_, fp_, 2 * n);
            for (int64_t i = start; a_.g_latents && i < stop; ++i)
                for (int64_t f = 0; f < f_; ++f) by_q[2 * i * fp_ + f] += a_.g_latents[(member_ * n_ + i) * f_ + f];
        });
        linear_back({q, fp_, f_}, {by, hp, a_.hidden, 1}, 2, first_weight, first_weight + 1);
        const T scale = static_cast<T>(a_.scale);
        if (T* to = by_weight(first_weight + 2))
            for (int64_t f = 0; f < a_.hidden; ++f) {
                T sum = 0;
                for (int64_t r = 0; r < 2 * n_; ++r) sum += g[r] * a[r * hp + f];
                to[f] = scale * sum;
            }
        if (T* to = by_weight(first_weight + 3)) {
            T sum = 0;
            for (int64_t i = 0; i < n_; ++i) sum += g[2 * i];
            *to = scale * sum;
        }
    }

    // Rows of the inputs of a linear map, as many channels as there are.
    struct Inputs {
        const T* rows;
        int64_t row, channels;
    };
    // Rows of derivatives by its results, in padded blocks of so many channels.
    struct Results {
        const T* rows;
        int64_t row, channels, blocks;
    };

    // Derivatives by a weight (inputs, blocks * channels), from `offset` rows on, and by the bias, from `twins` rows of
    // each atom; the bias acts on the first one only.
    void linear_back(const Inputs& x, const Results& y, int64_t twins, int64_t weight, int64_t bias, int64_t offset = 0) {
        T *to = by_weight(weight), *to_bias = bias < 0 ? nullptr : by_weight(bias);
        const int64_t width = padded<T>(y.channels), columns = y.blocks * y.channels, rows = twins * n_;
        pieces(threads_, to || to_bias ? y.blocks * width / WIDTH<T> : 0, 1, [&](int64_t panel, int64_t) {
            const int64_t block = panel * WIDTH<T> / width, channel = panel * WIDTH<T> % width;
            const int64_t count = std::min<int64_t>(WIDTH<T>, y.channels - channel);
            const T* from = y.rows + panel * WIDTH<T>;
            if (to) {
                Scratch<T> scratch;
                T* sums = scratch.zeros(x.channels * WIDTH<T>);
                for (int64_t r = 0; r < rows; r += ROWS_AT_ONCE)
                    add_product(x.rows + r * x.row, 1, x.row, from + r * y.row, y.row, sums, WIDTH<T>, x.channels,
                                std::min(ROWS_AT_ONCE, rows - r));
                for (int64_t c = 0; c < x.channels; ++c)
                    std::memcpy(to + (offset + c) * columns + block * y.channels + channel, sums + c * WIDTH<T>,
                                count * sizeof(T));
            }
            if (to_bias) {
                alignas(64) T sums[WIDTH<T>] = {};
                for (int64_t r = 0; r < rows; r += twins)
                    for (int k = 0; k < 2; ++k) vector(sums, k) += vector(from + r * y.row, k);
                std::memcpy(to_bias + block * y.channels + channel, sums, count * sizeof(T));
            }
        });
    }

    // Derivatives by the embedding from those by its rows, (N, 2, Fp).
    void embedding_back(const T* by_q) const {
        T* to = by_weight(0);
        if (!to) return;
        std::memset(to, 0, a_.species * f_ * sizeof(T));
        for (int64_t i = 0; i < n_; ++i)
            for (int64_t f = 0; f < f_; ++f) to[this->species_[i] * f_ + f] += by_q[2 * i * fp_ + f];
    }

    // From sums for each pair, of derivatives by direction u (3), its rate u' (3), length d and its rate d', to those by
    // the positions: d' = u · δ and u' = (δ - d' u) / d, where the pair's vector changes by δ.
    void positions_back() const {
        if (!a_.by_positions) return;
        T* to = a_.by_positions + 3 * member_ * n_;
        std::memset(to, 0, 3 * n_ * sizeof(T));
        for (int64_t p = 0; p < a_.pairs; ++p) {
            const T *u = pairs_.u + 3 * p, *turn = turn_ + 3 * p, *by = by_pair_ + 8 * p;
            const T d = pairs_.distance[p], rate = rate_[p];
            T by_rate = by[7], by_d = by[6], along = 0, by_u[3];
            for (int x = 0; x < 3; ++x) by_rate -= by[3 + x] * u[x] / d, by_d -= by[3 + x] * turn[x] / d;
            for (int x = 0; x < 3; ++x) {
                by_u[x] = by[x] + by_rate * (d * turn[x] + rate * u[x]) - rate * by[3 + x] / d;
                along += u[x] * by_u[x];
            }
            for (int x = 0; x < 3; ++x) {
                const T g = by_d * u[x] + (by_u[x] - along * u[x]) / d;
                to[3 * a_.first[p] + x] -= g;
                to[3 * a_.second[p] + x] += g;
            }
        }
    }

    static constexpr int64_t ROWS_AT_ONCE = 240;  // of a sum over rows: with the results they stay in the caches

    T* const* by_weights_;
    T *rate_, *turn_;  // of each pair's length (P,) and direction (P, 3)
    T* by_pair_;       // (P, 8), see `positions_back`

  private:
    // Calls body(place of a vector, place of its twin) in rows of twins.
    template <typename Body>
    static void each_vector(int64_t n, int64_t columns, Body body) {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t f = 0; f < columns; f += Simd<T>::lanes)
                body(2 * i * columns + f, (2 * i + 1) * columns + f);
    }
};

template <typename T, typename Network>
void differentiate(EngineArguments<T>& a) {
    const Structure<T> structure(a, Network::enveloped, a.by_positions);
    if (a.unknown) return;
    each_member(a.members, a.threads, [&](int64_t m, int threads) {
        Network(a, structure.pairs, structure.species.data(), m, threads).differentiate();
    });
}

}  // namespace
