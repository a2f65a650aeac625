// Energies, forces and virials of a potential and, in dual numbers, their derivatives, member by member, without autograd.

#pragma once

#include "weights.hpp"

namespace {

template <typename T>
struct NetworkArguments {
    int64_t atoms, pairs, systems, members, species, channels, layers, radial, hidden, heads, elements, threads;
    int64_t basis, activation, head_activation;
    double cutoff, scale;                                   // scale: of the energy
    const int64_t *first, *second, *numbers, *system;
    const int64_t *species_of_element, *channels_of_heads;  // (elements,), negative where unknown; (heads,)
    const double* references;                               // by species
    const T *positions, *shifts;                            // (N, 3), (P, 3)
    const T* const* raw;                                    // each weight of a member as Python has it
    T* weights;                                             // all members' weights as `Layout` has them
    int64_t weights_of_member;
    double* energies;                // (M, S)
    T *latents, *forces, *virials;   // (M, N, F), (M, N, 3), (M, S, 3, 3) or null: sum of dE/dr r^T
    T* const* head_results;          // for each head but the energy's (M, N, channels)
    double closest;                  // result: shortest distance
    int64_t unknown;                 // result: whether there is an element without a species; then there is nothing else
    // For dual numbers: cotangents (M, S), (M, N, 3) and (M, N, F), and where the derivatives by them go: for each weight
    // of each member, in the order of `raw`, and (M, N, 3); null where there is none or it is not wanted.
    const T *g_energy, *g_forces, *g_latents;
    T* const* by_weights;
    T* by_positions;
};

template <typename T>
struct Heads {
    struct Further {
        Linear<T> in, out;
    };
    Mlp<T> energy;
    std::vector<Further> further;

    Heads(const NetworkArguments<T>& a, Layout<T>& layout)
        : energy(layout.mlp(a.channels, a.hidden, 1, 1, false, static_cast<T>(a.scale))) {
        for (int64_t k = 0; k < a.heads; ++k) {
            const Raw<T> in = layout.next(a.channels, a.hidden), in_bias = layout.next(1, a.hidden);
            const Raw<T> out = layout.next(a.hidden, a.channels_of_heads[k]);
            const Raw<T> out_bias = layout.next(1, a.channels_of_heads[k]);
            const Linear<T> first = layout.forward(in, in_bias);
            further.push_back({first, layout.forward(out, out_bias)});
        }
    }
};

constexpr int64_t ATOM_PIECE = 72;  // atoms whose layers are computed one after the other, in the caches
constexpr int64_t PAIR_TILE = 12;   // pairs whose filters are held at once

// Calls item(channel block) for all of them; they write to nothing in common.
template <typename Item>
void each_block(int64_t blocks, int threads, Item item) {
    pieces(threads, blocks, 1, [&](int64_t c, int64_t) { item(c); });
}

// The pairs in numbers N: dual ones change as the positions move, by -g; see dual.hpp.
template <typename N>
struct Motion : Pairs<Real<N>> {
    using T = Real<N>;
    T *rate = nullptr, *turn = nullptr;  // of the lengths (P,) and directions (P, 3), for dual numbers

    Motion(const NetworkArguments<T>& a, const Pairs<T>& pairs, int64_t member, Scratch<T>& scratch) : Pairs<T>(pairs) {
        if (!IS_DUAL<N>) return;
        rate = scratch.zeros(a.pairs), turn = scratch.zeros(3 * a.pairs);
        if (!a.g_forces) return;
        const T* g = a.g_forces + 3 * member * a.atoms;
        for (int64_t p = 0; p < a.pairs; ++p) {
            const T *u = this->u + 3 * p, *g_i = g + 3 * a.first[p], *g_j = g + 3 * a.second[p];
            for (int x = 0; x < 3; ++x) rate[p] += u[x] * (g_i[x] - g_j[x]);
            for (int x = 0; x < 3; ++x) turn[3 * p + x] = (g_i[x] - g_j[x] - rate[p] * u[x]) / this->distance[p];
        }
    }

    // How fast the length changes.
    T speed(int64_t p) const { return rate[p]; }

    // What depends on the length, from its value and its derivative by it.
    N moving(int64_t p, T value, T slope) const {
        if constexpr (IS_DUAL<N>)
            return {value, rate[p] * slope};
        else
            return value;
    }

    N length(int64_t p) const { return moving(p, this->distance[p], 1); }

    N direction(int64_t p, int x) const {
        if constexpr (IS_DUAL<N>)
            return {this->u[3 * p + x], turn[3 * p + x]};
        else
            return this->u[3 * p + x];
    }
};

// What both networks have in common: the features' layout, the head, and the way from pairs to forces.
//
// Between the messages and the layers, features are cut into blocks of WIDTH channels, (blocks, N, kinds, WIDTH): a
// message reads and writes the rows of one block only, which lie close together and belong to one thread.
template <typename N, typename Weights>
class CompiledNetwork {
  protected:
    using T = Real<N>;
    using V = Many<N>;

  public:
    CompiledNetwork(const NetworkArguments<T>& a, const Pairs<T>& pairs, const int64_t* species, int64_t member, int threads)
        : a_(a), pairs_(a, pairs, member, scratch_), species_(species), member_(member), threads_(threads), n_(a.atoms),
          f_(a.channels), fp_(padded<T>(a.channels)), blocks_(fp_ / WIDTH<T>), act_(static_cast<Activation>(a.activation)),
          by_weights_(IS_DUAL<N> && a.by_weights ? a.by_weights + member * Weights::count(a) : nullptr), weights_(read(a, member)) {}

  protected:
    // Calls body(start, count, memory for this piece) on pieces of the atoms.
    template <typename Body>
    void each_atom(Body body) const {
        pieces(threads_, n_, ATOM_PIECE, [&](int64_t start, int64_t stop) {
            Scratch<T> scratch;
            body(start, stop - start, scratch);
        });
    }

    // Calls body(atom, channel) for each vector of channels of so many atoms.
    template <typename Body>
    void each(int64_t n, Body body) const {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t f = 0; f < fp_; f += Simd<T>::lanes) body(i, f);
    }

    // For less work, starting threads takes longer than the messages.
    int message_threads() const { return a_.pairs * f_ > 30000 ? threads_ : 1; }

    // Memory for rows of all atoms that the derivatives by the weights are computed from; null where they are not wanted.
    T* kept(int64_t rows, int64_t width) { return by_weights_ ? scratch_.take(rows * PARTS<N> * width) : nullptr; }

    // Rows from `start` on of memory for all of them; where there is none, memory for `rows` of them.
    template <typename Z>
    static Rows<Z> rows(T* all, int64_t start, int64_t rows, int64_t width, Scratch<T>& scratch) {
        if (all) return Rows<Z>{all, width}.from(start);
        return {scratch.take(rows * PARTS<Z> * width), width, rows};
    }

    N* numbers(int64_t count) { return reinterpret_cast<N*>(scratch_.zeros(count * PARTS<N>)); }

    T* by_weight(int64_t k) const { return by_weights_ ? by_weights_[k] : nullptr; }

    // Whether derivatives by positions are wanted.
    bool of_pairs() const { return !IS_DUAL<N> || a_.by_positions; }

    // Rows of WIDTH channels, of an atom's kinds, in blocked features of Z.
    template <typename Z>
    Rows<Z> place(T* features, int64_t kinds, int64_t block, int64_t atom) const {
        return {features + (block * n_ + atom) * kinds * PARTS<Z> * WIDTH<T>, WIDTH<T>};
    }

    void embed(int64_t start, int64_t n, const Rows<T>& rows) const {
        for (int64_t i = 0; i < n; ++i)
            std::memcpy(rows.row(i), weights_.embedding + species_[start + i] * fp_, fp_ * sizeof(T));
    }

    // Latents and, with values alone, atomic energies and further heads from the last features q of the atoms from `start` on;
    // by_q becomes the derivative of the energies by the features.
    void head(const Rows<N>& q, int64_t start, int64_t n, const Rows<N>& by_q, Scratch<T>& scratch) {
        const Activation act = static_cast<Activation>(a_.head_activation);
        const Heads<T>& heads = weights_.heads;
        const int64_t hp = padded<T>(a_.hidden);
        const Rows<N> slope = rows<N>(nullptr, 0, n, hp, scratch);
        const Rows<N> a = rows<N>(head_a_, start, n, hp, scratch), by = rows<N>(head_by_, start, n, hp, scratch);
        if constexpr (!IS_DUAL<N>) further_heads(q, start, n, slope, a, scratch);
        apply(heads.energy.in, q, slope, n);
        activate(act, slope, a, n);
        if constexpr (!IS_DUAL<N>) {
            const Rows<N> e = rows<N>(nullptr, 0, n, WIDTH<T>, scratch);
            apply(heads.energy.out, a, e, n);
            for (int64_t i = 0; i < n; ++i) {
                atomic_[start + i] = *e.row(i);
                std::memcpy(a_.latents + ((member_ * n_) + start + i) * f_, q.row(i), f_ * sizeof(T));
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            const N one = by_energy(start + i);
            for (int64_t f = 0; f < hp; f += Simd<T>::lanes) by.put(i, f, one * vector(heads.energy.out_t.panels + f, 0));
        }
        chain(slope, by, n);
        apply(heads.energy.in_t, by, by_q, n);
        if constexpr (IS_DUAL<N>)
            for (int64_t i = 0; a_.g_latents && i < n; ++i)
                for (int64_t f = 0; f < f_; ++f) by_q.row(i)[by_q.rates + f] += a_.g_latents[(member_ * n_ + start + i) * f_ + f];
    }

    // Derivatives by the head's weights, from the one with this number on, with the last features (N, Fp).
    void head_weights(T* q, int64_t k) {
        const int64_t hp = padded<T>(a_.hidden);
        const Rows<N> by_e = {scratch_.zeros(n_ * PARTS<N> * WIDTH<T>), WIDTH<T>};
        for (int64_t i = 0; i < n_; ++i) by_e.put(i, 0, static_cast<T>(a_.scale) * by_energy(i) * Vector<T>{1});
        linear_back<N>(threads_, {q, fp_}, f_, {head_by_, hp}, 1, a_.hidden, n_, by_weight(k), by_weight(k + 1));
        linear_back<N>(threads_, {head_a_, hp}, a_.hidden, by_e, 1, 1, n_, by_weight(k + 2), by_weight(k + 3));
    }

    // Derivatives by the embedding from those by its rows.
    void embedding_back(const Rows<T>& by_q) const {
        T* to = by_weight(0);
        if (!to) return;
        std::memset(to, 0, a_.species * f_ * sizeof(T));
        for (int64_t i = 0; i < n_; ++i)
            for (int64_t f = 0; f < f_; ++f) to[species_[i] * f_ + f] += by_q.row(i)[f];
    }

    // From the derivatives of the energy by pairs, (P, columns): the last one by the length, those before by the direction.
    template <int columns>
    void finish(const N* by_pair) const {
        T* forces = IS_DUAL<N> ? a_.by_positions : a_.forces;
        if (!IS_DUAL<N>) energies();
        if (!forces) return;
        forces += 3 * member_ * n_;
        T* virials = !IS_DUAL<N> && a_.virials ? a_.virials + 9 * member_ * a_.systems : nullptr;
        std::memset(forces, 0, 3 * n_ * sizeof(T));
        if (virials) std::memset(virials, 0, 9 * a_.systems * sizeof(T));
        for (int64_t p = 0; p < a_.pairs; ++p) {
            const N d = pairs_.length(p), u[3] = {pairs_.direction(p, 0), pairs_.direction(p, 1), pairs_.direction(p, 2)};
            const N* by = by_pair + columns * p;
            N g[3] = {}, along = {};
            for (int x = 0; x < columns - 1; ++x) g[x] = by[x], accumulate(along, u[x], g[x]);
            const int64_t i = a_.first[p], j = a_.second[p];
            for (int x = 0; x < 3; ++x) {
                g[x] = by[columns - 1] * u[x] + (g[x] - along * u[x]) / d;
                // The force is the derivative with its sign turned.
                const T force = IS_DUAL<N> ? -asked(g[x]) : asked(g[x]);
                forces[3 * i + x] += force;
                forces[3 * j + x] -= force;
            }
            if constexpr (!IS_DUAL<N>)
                for (int x = 0; virials && x < 3; ++x)
                    for (int y = 0; y < 3; ++y) virials[9 * a_.system[i] + 3 * x + y] += g[x] * d * u[y];
        }
    }

    // Adds up what the blocks of channels say of `count` numbers.
    void add_blocks(const N* blocks, int64_t count, N* sums) const {
        pieces(threads_, count, 4096, [&](int64_t start, int64_t stop) {
            for (int64_t c = 0; c < blocks_; ++c)
                for (int64_t k = start; k < stop; ++k) sums[k] += blocks[c * count + k];
        });
    }

    const NetworkArguments<T>& a_;
    Scratch<T> scratch_;
    const Motion<N> pairs_;
    const int64_t* species_;
    const int64_t member_;
    const int threads_;
    const int64_t n_, f_, fp_, blocks_;
    const Activation act_;
    T* const* by_weights_;
    const Weights weights_;
    T* atomic_ = scratch_.take(a_.atoms);  // energies (N,)
    // Of the head's hidden layer, for all atoms.
    T *head_a_ = kept(n_, padded<T>(a_.hidden)), *head_by_ = kept(n_, padded<T>(a_.hidden));

  private:
    static Weights read(const NetworkArguments<T>& a, int64_t member) {
        Layout<T> layout(a.weights + member * a.weights_of_member, nullptr);
        return Weights(a, layout);
    }

    // With which the way back begins for an atom.
    N by_energy(int64_t atom) const {
        if constexpr (IS_DUAL<N>)
            return {1, a_.g_energy ? a_.g_energy[member_ * a_.systems + a_.system[atom]] : 0};
        else
            return 1;
    }

    void further_heads(const Rows<N>& q, int64_t start, int64_t n, const Rows<N>& h, const Rows<N>& a, Scratch<T>& scratch) const {
        for (int64_t k = 0; k < a_.heads; ++k) {
            const auto& further = weights_.heads.further[k];
            const Rows<N> out = rows<N>(nullptr, 0, n, further.out.columns, scratch);
            apply(further.in, q, h, n);
            activate(static_cast<Activation>(a_.head_activation), h, a, n);
            apply(further.out, a, out, n);
            const int64_t channels = a_.channels_of_heads[k];
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(a_.head_results[k] + (member_ * n_ + start + i) * channels, out.row(i), channels * sizeof(T));
        }
    }

    // In double precision: the references are thousands of eV.
    void energies() const {
        double* energies = a_.energies + member_ * a_.systems;
        for (int64_t s = 0; s < a_.systems; ++s) energies[s] = 0;
        for (int64_t i = 0; i < n_; ++i) energies[a_.system[i]] += double(atomic_[i]) + a_.references[species_[i]];
    }
};

// Sets the size of a member's weights and, where there is memory for them, lays out those of all members.
template <typename T, typename Weights>
void lay_out(NetworkArguments<T>& a) {
    Layout<T> measure(nullptr, nullptr);
    Weights(a, measure);
    a.weights_of_member = measure.size();
    pieces(static_cast<int>(a.threads), a.weights ? a.members : 0, 1, [&](int64_t m, int64_t) {
        Layout<T> layout(a.weights + m * a.weights_of_member, a.raw + m * Weights::count(a));
        Weights(a, layout);
    });
}

// What all members have in common.
template <typename T>
struct Structure {
    std::vector<int64_t> species;
    Scratch<T> scratch;
    Pairs<T> pairs = {};

    // Sets what `a` has to say about it; `species` stays empty where one is unknown.
    Structure(NetworkArguments<T>& a, bool enveloped, bool curved = false) {
        for (int64_t i = 0; i < a.atoms; ++i) {
            const int64_t z = a.numbers[i], s = z < 0 || z >= a.elements ? -1 : a.species_of_element[z];
            if ((a.unknown = s < 0)) return;
            species.push_back(s);
        }
        const int64_t row = enveloped ? a.radial + 1 : padded<T>(a.radial), size = a.pairs * row;
        // What is beyond the last radial function counts for nothing: it has to be zero where sums go over whole rows.
        T* basis = curved ? scratch.zeros(2 * size) : scratch.take(2 * size);
        pairs = {scratch.take(a.pairs), scratch.take(3 * a.pairs), basis, basis + size, curved ? scratch.zeros(size) : nullptr,
                 scratch.take(a.pairs), scratch.take(a.pairs), scratch.take(a.pairs), row};
        geometry(a.positions, a.shifts, a.first, a.second, a.pairs, static_cast<Basis>(a.basis), a.radial, a.cutoff,
                 enveloped, pairs, static_cast<int>(a.threads));
        a.closest = std::numeric_limits<double>::infinity();
        for (int64_t p = 0; p < a.pairs; ++p) a.closest = std::min(a.closest, double(pairs.distance[p]));
    }
};

// Calls body(member, threads). Members are shared out where there are enough of them, and computed one after the other
// with all threads otherwise.
template <typename Body>
void each_member(int64_t members, int64_t all_threads, Body body) {
    const int threads = static_cast<int>(all_threads);
    const bool outer = threads > 1 && members >= threads;
    Exhaustion exhaustion;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (outer)
    for (int64_t m = 0; m < members; ++m) exhaustion.within([&] { body(m, outer ? 1 : threads); });
    exhaustion.raise();
}

// Energies and forces with real numbers, and with dual ones their derivatives.
template <typename N, template <typename> class Network>
void evaluate(NetworkArguments<Real<N>>& a) {
    const Structure<Real<N>> structure(a, Network<N>::enveloped, IS_DUAL<N> && a.by_positions);
    if (a.unknown) return;
    each_member(a.members, a.threads, [&](int64_t m, int threads) {
        Network<N>(a, structure.pairs, structure.species.data(), m, threads).evaluate();
    });
}

}  // namespace
