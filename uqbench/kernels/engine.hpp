// Energies, forces and virials of a potential, member by member, without autograd.

#pragma once

#include "layers.hpp"

namespace {

// Weights come as one list of pointers, in the order in which `Reader` is asked for them; see engine.py.
template <typename T>
struct EngineArguments {
    int64_t atoms, pairs, systems, members, channels, layers, radial, hidden, heads, elements, threads;
    int64_t basis, activation, head_activation;
    double cutoff;
    const int64_t *first, *second, *numbers, *system;
    const int64_t *species_of_element, *channels_of_heads;  // (elements,), negative where unknown; (heads,)
    const double* references;                               // by species
    const T *positions, *shifts;                            // (N, 3), (P, 3)
    const T* const* weights;                                // of all members, one after the other
    int64_t weights_of_member;
    double* energies;                // (M, S)
    T *latents, *forces, *virials;   // (M, N, F), (M, N, 3), (M, S, 3, 3) or null: sum of dE/dr r^T
    T* const* head_results;          // for each head but the energy's (M, N, channels)
    double closest;                  // result: shortest distance
    int64_t unknown;                 // result: whether there is an element without a species; then there is nothing else
};

template <typename T>
class Reader {
  public:
    explicit Reader(const T* const* next) : next_(next) {}

    const T* plain() { return *next_++; }

    // Panels and bias; `inner` rows of W, and columns rounded up by the caller.
    Linear<T> linear(int64_t inner, int64_t columns, bool bias = true) {
        const T* panels = plain();
        return {panels, bias ? plain() : nullptr, inner, columns};
    }

    // in (a -> b), out (b -> c), then both transposed; widths are actual on the inner side and padded on the other.
    Mlp<T> mlp(int64_t a, int64_t b, int64_t c, int64_t rows_of_c) {
        Mlp<T> m;
        m.in = linear(a, padded<T>(b)), m.out = linear(b, c);
        m.in_t = linear(b, padded<T>(a), false), m.out_t = linear(rows_of_c, padded<T>(b), false);
        return m;
    }

  private:
    const T* const* next_;
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
          reader_(a.weights + member * a.weights_of_member) {}

  protected:
    struct Head {
        Linear<T> in, out;
    };

    void read_heads() {
        head_ = reader_.mlp(f_, a_.hidden, WIDTH<T>, 1);
        for (int64_t k = 0; k < a_.heads; ++k) {
            const Linear<T> in = reader_.linear(f_, padded<T>(a_.hidden));
            heads_.push_back({in, reader_.linear(a_.hidden, padded<T>(a_.channels_of_heads[k]))});
        }
        atomic_ = scratch_.take(n_);
    }

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
    void head(const T* q, int64_t start, int64_t n, T* by_q, Scratch<T>& scratch) const {
        const Activation act = static_cast<Activation>(a_.head_activation);
        const int64_t hp = padded<T>(a_.hidden), first = member_ * n_ + start;
        T *slope = scratch.take(n * hp), *a = scratch.take(n * hp), *by = scratch.take(n * hp);
        for (int64_t k = 0; k < a_.heads; ++k) {
            const Head& further = heads_[k];
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
        apply(head_.in, q, fp_, slope, hp, n);
        activate(act, slope, a, n * hp);
        apply(head_.out, a, hp, e, WIDTH<T>, n);
        for (int64_t i = 0; i < n; ++i) {
            atomic_[start + i] = e[i * WIDTH<T>];
            std::memcpy(a_.latents + (first + i) * f_, q + i * fp_, f_ * sizeof(T));
        }
        const T one = 1;
        apply(head_.out_t, &one, 0, by, hp, n);
        chain(slope, by, n * hp);
        apply(head_.in_t, by, hp, by_q, fp_, n);
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
    Reader<T> reader_;
    Scratch<T> scratch_;

  private:
    Mlp<T> head_ = {};
    std::vector<Head> heads_;
    T* atomic_ = nullptr;
};

// Members are shared out where there are enough of them, and computed one after the other with all threads otherwise.
template <typename T, typename Network>
void each_member(EngineArguments<T>& a) {
    std::vector<int64_t> species(a.atoms);
    for (int64_t i = 0; i < a.atoms; ++i) {
        const int64_t z = a.numbers[i];
        species[i] = z < 0 || z >= a.elements ? -1 : a.species_of_element[z];
        if (species[i] < 0) {
            a.unknown = 1;
            return;
        }
    }
    const int threads = static_cast<int>(a.threads);
    const int64_t row = a.radial + Network::enveloped;
    Scratch<T> scratch;
    const Pairs<T> pairs = {scratch.take(a.pairs),       scratch.take(3 * a.pairs), scratch.take(a.pairs * row),
                            scratch.take(a.pairs * row), scratch.take(a.pairs),     scratch.take(a.pairs), row};
    geometry(a.positions, a.shifts, a.first, a.second, a.pairs, static_cast<Basis>(a.basis), a.radial, a.cutoff,
             Network::enveloped, pairs, threads);
    a.closest = std::numeric_limits<double>::infinity();
    for (int64_t p = 0; p < a.pairs; ++p) a.closest = std::min(a.closest, double(pairs.distance[p]));
    const bool outer = threads > 1 && a.members >= threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (outer)
    for (int64_t m = 0; m < a.members; ++m) Network(a, pairs, species.data(), m, outer ? 1 : threads).evaluate();
}

}  // namespace
