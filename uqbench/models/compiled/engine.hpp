// Energies, forces and virials of a potential, member by member, without autograd.

#pragma once

#include "weights.hpp"

namespace {

template <typename T>
struct EngineArguments {
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
    // Of `gradient.hpp`: cotangents (M, S), (M, N, 3) and (M, N, F), and where the derivatives by them go: for each weight
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

    Heads(const EngineArguments<T>& a, Layout<T>& layout)
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

// What both networks have in common: the features' layout, the head, and the way from pairs to forces.
//
// Between the messages and the layers, features are cut into blocks of WIDTH channels, (blocks, N, kinds, WIDTH): a
// message reads and writes the rows of one block only, which lie close together and belong to one thread.
template <typename T>
class Engine {
  public:
    Engine(const EngineArguments<T>& a, const Pairs<T>& pairs, const int64_t* species, int64_t member, int threads)
        : a_(a), pairs_(pairs), species_(species), member_(member), threads_(threads), n_(a.atoms), f_(a.channels),
          fp_(padded<T>(a.channels)), blocks_(fp_ / WIDTH<T>), act_(static_cast<Activation>(a.activation)),
          layout_(a.weights + member * a.weights_of_member, nullptr) {}

  protected:
    // Calls body(start, stop, memory for this piece) on pieces of the atoms.
    template <typename Body>
    void each_atom(Body body) const {
        pieces(threads_, n_, ATOM_PIECE, [&](int64_t start, int64_t stop) {
            Scratch<T> scratch;
            body(start, stop, scratch);
        });
    }

    // For less work, starting threads takes longer than the messages.
    int message_threads() const { return a_.pairs * f_ > 30000 ? threads_ : 1; }

    T* place(T* features, int64_t kinds, int64_t block, int64_t atom) const {
        return features + (block * n_ + atom) * kinds * WIDTH<T>;
    }

    const T* embedding(const T* rows, int64_t atom) const { return rows + species_[atom] * fp_; }

    // Atomic energies, latents and further heads from the last features (n, Fp) of the atoms from `start` on; by_q becomes
    // the derivative of the energies by the features.
    void head(const Heads<T>& heads, const T* q, int64_t start, int64_t n, T* by_q, Scratch<T>& scratch) {
        const Activation act = static_cast<Activation>(a_.head_activation);
        const int64_t hp = padded<T>(a_.hidden), first = member_ * n_ + start;
        T *slope = scratch.take(n * hp), *a = scratch.take(n * hp), *by = scratch.take(n * hp);
        for (int64_t k = 0; k < a_.heads; ++k) {
            const auto& further = heads.further[k];
            T* out = scratch.take(n * further.out.columns);
            apply(further.in, q, fp_, slope, hp, n);
            activate(act, slope, a, n * hp);
            apply(further.out, a, hp, out, further.out.columns, n);
            const int64_t channels = a_.channels_of_heads[k];
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(a_.head_results[k] + (first + i) * channels, out + i * further.out.columns,
                            channels * sizeof(T));
        }
        T* e = scratch.take(n * WIDTH<T>);
        apply(heads.energy.in, q, fp_, slope, hp, n);
        activate(act, slope, a, n * hp);
        apply(heads.energy.out, a, hp, e, WIDTH<T>, n);
        for (int64_t i = 0; i < n; ++i) {
            atomic_[start + i] = e[i * WIDTH<T>];
            std::memcpy(a_.latents + (first + i) * f_, q + i * fp_, f_ * sizeof(T));
        }
        const T one = 1;
        apply(heads.energy.out_t, &one, 0, by, hp, n);
        chain(slope, by, n * hp);
        apply(heads.energy.in_t, by, hp, by_q, fp_, n);
    }

    // Energies in double precision: the references are thousands of eV. From the derivatives by lengths (P,) and
    // directions (P, 3; or null) of the energy, forces and virials.
    void finish(const T* by_distance, const T* by_u) const {
        double* energies = a_.energies + member_ * a_.systems;
        for (int64_t s = 0; s < a_.systems; ++s) energies[s] = 0;
        for (int64_t i = 0; i < n_; ++i) energies[a_.system[i]] += double(atomic_[i]) + a_.references[species_[i]];
        T *forces = a_.forces + 3 * member_ * n_, *virials = a_.virials ? a_.virials + 9 * member_ * a_.systems : nullptr;
        std::memset(forces, 0, 3 * n_ * sizeof(T));
        if (virials) std::memset(virials, 0, 9 * a_.systems * sizeof(T));
        for (int64_t p = 0; p < a_.pairs; ++p) {
            const T *u = pairs_.u + 3 * p, d = pairs_.distance[p];
            T g[3] = {}, along = 0;
            for (int x = 0; by_u && x < 3; ++x) g[x] = by_u[3 * p + x], along += u[x] * g[x];
            const int64_t i = a_.first[p], j = a_.second[p];
            for (int x = 0; x < 3; ++x) {
                g[x] = by_distance[p] * u[x] + (g[x] - along * u[x]) / d;
                forces[3 * i + x] += g[x];
                forces[3 * j + x] -= g[x];
            }
            if (virials)
                for (int x = 0; x < 3; ++x)
                    for (int y = 0; y < 3; ++y) virials[9 * a_.system[i] + 3 * x + y] += g[x] * d * u[y];
        }
    }

    const EngineArguments<T>& a_;
    const Pairs<T>& pairs_;
    const int64_t* species_;
    const int64_t member_;
    const int threads_;
    const int64_t n_, f_, fp_, blocks_;
    const Activation act_;
    Layout<T> layout_;
    Scratch<T> scratch_;
    T* atomic_ = scratch_.take(a_.atoms);  // energies (N,)
};

// Sets the size of a member's weights and, where there is memory for them, lays out those of all members.
template <typename T, typename Weights>
void lay_out(EngineArguments<T>& a) {
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
    Structure(EngineArguments<T>& a, bool enveloped, bool curved = false) {
        for (int64_t i = 0; i < a.atoms; ++i) {
            const int64_t z = a.numbers[i], s = z < 0 || z >= a.elements ? -1 : a.species_of_element[z];
            if ((a.unknown = s < 0)) return;
            species.push_back(s);
        }
        const int64_t row = a.radial + enveloped;
        pairs = {scratch.take(a.pairs), scratch.take(3 * a.pairs), scratch.take(a.pairs * row), scratch.take(a.pairs * row),
                 curved ? scratch.take(a.pairs * row) : nullptr, scratch.take(a.pairs), scratch.take(a.pairs), row};
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
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (outer)
    for (int64_t m = 0; m < members; ++m) body(m, outer ? 1 : threads);
}

template <typename T, typename Network>
void evaluate(EngineArguments<T>& a) {
    const Structure<T> structure(a, Network::enveloped);
    if (a.unknown) return;
    each_member(a.members, a.threads, [&](int64_t m, int threads) {
        Network(a, structure.pairs, structure.species.data(), m, threads).evaluate();
    });
}

}  // namespace
