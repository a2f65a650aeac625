// SchNet for `CompiledNetwork`: the network of models/schnet.py and its derivatives.

#pragma once

#include "network.hpp"

namespace {

template <typename T>
struct SchnetWeights {
    struct Layer {
        Mlp<T> filters;
        Linear<T> senders, senders_t;
        Mlp<T> update;
    };

    const T* embedding;
    std::vector<Layer> layers;
    Heads<T> heads;

    static int64_t count(const NetworkArguments<T>& a) { return 1 + 9 * a.layers + 4 * (1 + a.heads); }

    SchnetWeights(const NetworkArguments<T>& a, Layout<T>& layout)
        : embedding(layout.table(layout.next(a.species, a.channels))), layers(read(a, layout)), heads(a, layout) {}

  private:
    static std::vector<Layer> read(const NetworkArguments<T>& a, Layout<T>& layout) {
        std::vector<Layer> layers;
        const int64_t f = a.channels;
        for (int64_t k = 0; k < a.layers; ++k) {
            Layer l;
            l.filters = layout.mlp(a.radial, f, f, 1, true);
            const Raw<T> senders = layout.next(f, f);
            l.senders = layout.forward(senders), l.senders_t = layout.backward(senders, false);
            l.update = layout.mlp(f, f, f, 1, true);
            layers.push_back(l);
        }
        return layers;
    }
};

template <typename N>
class SchnetNetwork : CompiledNetwork<N, SchnetWeights<Real<N>>> {
    using Base = CompiledNetwork<N, SchnetWeights<Real<N>>>;
    using typename Base::T, typename Base::V;
    using Base::a_, Base::act_, Base::blocks_, Base::by_weight, Base::by_weights_, Base::each, Base::each_atom, Base::f_,
        Base::fp_, Base::kept, Base::n_, Base::numbers, Base::of_pairs, Base::pairs_, Base::place, Base::scratch_,
        Base::threads_, Base::weights_;

    // Filters depend on a pair's length alone, and are dual numbers always: where N is real, their rates are those by the
    // length, which the way back needs and nothing else of them.
    using Filter = Dual<T>;
    using Filters = Many<Filter>;

    // One layer, and what its way back needs of its way there. What the first layer sends has no rates.
    struct Layer : SchnetWeights<T>::Layer {
        int64_t number;
        T *w, *filter_slope;        // (blocks, P, WIDTH): filters; (P, Fp): their MLP's slopes
        T *x, *z, *slope;           // (N, Fp): features; (blocks, N, WIDTH): senders; (N, Fp): slopes of the update
        T *filter_hidden, *m, *a;   // inputs of linear maps, for the derivatives by these; or null
    };

  public:
    static constexpr bool enveloped = false;

    using Base::Base;

    void evaluate() {
        for (const auto& layer : weights_.layers) layers_.push_back(with_room(layer, layers_.size()));
        x_ = own_features(a_.layers) ? scratch_.take(n_ * PARTS<N> * fp_) : layers_.back().x;
        by_x_ = by_weights_ ? scratch_.take(n_ * PARTS<N> * fp_) : x_;
        received_ = scratch_.take(n_ * PARTS<N> * fp_), by_z_ = scratch_.take(n_ * PARTS<N> * fp_);
        by_w_ = IS_DUAL<N> ? scratch_.take(a_.pairs * 2 * fp_) : nullptr;
        by_sent_ = kept(n_, fp_), by_h_ = kept(n_, fp_), by_filter_ = kept(a_.pairs, fp_), by_filter_h_ = kept(a_.pairs, fp_);
        by_pair_ = numbers(a_.pairs), by_blocks_ = of_pairs() ? numbers(blocks_ * a_.pairs) : nullptr;
        set_basis();
        each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
            const Rows<T> x = Rows<T>{layers_[0].x, fp_}.from(start);
            this->embed(start, n, x);
            send<T>(layers_[0], start, n, x, scratch);
        });
        for (int64_t k = 0; k < a_.layers; ++k) {
            filter(layers_[k]);
            messages(layers_[k]);
            each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
                const Rows<N> x = Rows<N>{k < a_.layers - 1 ? layers_[k + 1].x : x_, fp_}.from(start);
                if (k == 0)
                    update<T>(layers_[k], start, n, x, scratch);
                else
                    update<N>(layers_[k], start, n, x, scratch);
                if (k < a_.layers - 1) return send<N>(layers_[k + 1], start, n, x, scratch);
                this->head(x, start, n, Rows<N>{by_x_, fp_}.from(start), scratch);
                update_back(layers_[k], start, n, scratch);
            });
        }
        if (by_weights_) this->head_weights(x_, 1 + 9 * a_.layers);
        for (int64_t k = a_.layers - 1; k > 0; --k) {
            back<N>(layers_[k]);
            each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
                send_back<N>(layers_[k], start, n, Rows<N>{by_x_, fp_}.from(start), scratch);
                update_back(layers_[k - 1], start, n, scratch);
            });
            if (by_weights_) sender_weights<N>(layers_[k]);
        }
        back<T>(layers_[0]);
        if (by_weights_) first_weights(layers_[0]);
        this->template finish<1>(by_pair_);
    }

  private:
    // Whether the features before a layer have memory of their own: the first ones have no rates, and linear maps' inputs
    // are kept for the derivatives by their weights.
    bool own_features(int64_t layer) const { return by_weights_ || layer <= (IS_DUAL<N> ? 1 : 0); }

    Layer with_room(const typename SchnetWeights<T>::Layer& weights, int64_t number) {
        Layer l = {};
        static_cast<typename SchnetWeights<T>::Layer&>(l) = weights;
        const int64_t atoms = n_ * PARTS<N> * fp_, pairs = a_.pairs * 2 * fp_;
        l.number = number;
        l.w = scratch_.take(pairs), l.filter_slope = IS_DUAL<N> ? scratch_.take(pairs) : nullptr;
        l.x = own_features(number) ? scratch_.take(atoms) : layers_.back().x;
        l.z = scratch_.take(atoms), l.slope = scratch_.take(atoms);
        l.filter_hidden = kept(a_.pairs, fp_), l.m = kept(n_, fp_), l.a = kept(n_, fp_);
        return l;
    }

    // How fast the length changes.
    T speed(int64_t p) const {
        if constexpr (IS_DUAL<N>)
            return pairs_.speed(p);
        else
            return 1;
    }

    void set_basis() {
        basis_ = {pairs_.basis, pairs_.row, a_.pairs};
        if (!IS_DUAL<N>) return;
        basis_ = {scratch_.take(a_.pairs * 2 * pairs_.row), pairs_.row};
        for (int64_t p = 0; p < a_.pairs; ++p)
            for (int64_t k = 0; k < pairs_.row; k += Simd<T>::lanes) basis_.put(p, k, radial(pairs_.basis, pairs_.slope, p, k));
    }

    Filters radial(const T* values, const T* slopes, int64_t p, int64_t k) const {
        return {vector(values + p * pairs_.row + k, 0), speed(p) * vector(slopes + p * pairs_.row + k, 0)};
    }

    // An atom's features in a block.
    template <typename Z>
    Rows<Z> atom(T* features, int64_t block, int64_t i) const {
        return this->template place<Z>(features, 1, block, i);
    }
    Rows<Filter> pair(T* filters, int64_t block, int64_t p) const {
        // Where N is real, the way there reads values alone.
        const Rows<Filter> in_turn = {filters, WIDTH<T>}, apart = {filters, WIDTH<T>, blocks_ * a_.pairs};
        return (IS_DUAL<N> ? in_turn : apart).from(block * a_.pairs + p);
    }

    // Filters act(b V + c) V' + c' of radial functions b.
    void filter(const Layer& l) const {
        pieces(threads_, a_.pairs, FILTER_PIECE, [&](int64_t p0, int64_t p1) {
            Scratch<T> scratch;
            const int64_t n = p1 - p0;
            const Rows<Filter> h = Base::template rows<Filter>(l.filter_slope, p0, n, fp_, scratch);
            const Rows<Filter> hidden = Base::template rows<Filter>(l.filter_hidden, p0, n, fp_, scratch);
            const Rows<Filter> w = Base::template rows<Filter>(nullptr, 0, n, fp_, scratch);
            apply(l.filters.in, basis_.from(p0), h, n);
            activate<IS_DUAL<N>>(act_, h, hidden, n);
            apply(l.filters.out, hidden, w, n);
            each(n, [&](int64_t p, int64_t f) {
                const Filters one = IS_DUAL<N> ? w.at(p, f) : envelope(p0 + p) * w.at(p, f);
                pair(l.w, f / WIDTH<T>, p0 + p).put(0, f % WIDTH<T>, one);
            });
        });
    }

    static Rows<N> rows(T* all, int64_t start, int64_t n, int64_t width, Scratch<T>& scratch) {
        return Base::template rows<N>(all, start, n, width, scratch);
    }
    Rows<N> rows(T* all, int64_t start, int64_t n, Scratch<T>& scratch) const { return rows(all, start, n, fp_, scratch); }

    Filter envelope(int64_t p) const { return {pairs_.envelope[p], speed(p) * pairs_.fall[p]}; }

    // A filter with the cutoff function, from what `filter` left: the way back through dual ones needs them without it.
    static Filters enveloped_filter(const Filter& cutoff, const Filters& w) {
        if constexpr (IS_DUAL<N>)
            return cutoff * w;
        else
            return w;
    }

    // The number N that a filter is.
    static V in_numbers(const Filters& w) {
        if constexpr (IS_DUAL<N>)
            return w;
        else
            return w.value;
    }

    template <typename Z>
    void send(const Layer& l, int64_t start, int64_t n, const Rows<Z>& x, Scratch<T>& scratch) const {
        const Rows<Z> z = Base::template rows<Z>(nullptr, 0, n, fp_, scratch);
        apply(l.senders, x, z, n);
        each(n, [&](int64_t i, int64_t f) { atom<Z>(l.z, f / WIDTH<T>, start + i).put(0, f % WIDTH<T>, z.at(i, f)); });
    }

    void messages(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            std::memset(atom<N>(received_, c, 0).data, 0, n_ * PARTS<N> * WIDTH<T> * sizeof(T));
            if (l.number == 0)
                receive<T>(l, c);
            else
                receive<N>(l, c);
        });
    }

    template <typename Z>
    void receive(const Layer& l, int64_t c) const {
        for (int64_t p = 0; p < a_.pairs; ++p) {
            const Rows<Z> z_i = atom<Z>(l.z, c, a_.first[p]), z_j = atom<Z>(l.z, c, a_.second[p]);
            const Rows<N> to_i = atom<N>(received_, c, a_.first[p]), to_j = atom<N>(received_, c, a_.second[p]);
            const Filter cutoff = envelope(p);
            for (int64_t f = 0; f < WIDTH<T>; f += Simd<T>::lanes) {
                const V w = in_numbers(enveloped_filter(cutoff, pair(l.w, c, p).at(0, f)));
                to_i.accumulate_at(0, f, w, z_j.at(0, f));
                to_j.accumulate_at(0, f, w, z_i.at(0, f));
            }
        }
    }

    // From derivatives by what was received to those by senders, by the filters and their weights, and by lengths.
    template <typename Z>
    void back(const Layer& l) const {
        if (by_weights_) update_weights(l);
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            const bool senders = l.number > 0 || by_weights_;
            if (senders) std::memset(atom<Z>(by_z_, c, 0).data, 0, n_ * PARTS<Z> * WIDTH<T> * sizeof(T));
            for (int64_t p = 0; p < a_.pairs; ++p) {
                const int64_t i = a_.first[p], j = a_.second[p];
                const Filter cutoff = envelope(p);
                V by_length = {};
                for (int64_t f = 0; f < WIDTH<T>; f += Simd<T>::lanes) {
                    const V g_i = atom<N>(received_, c, i).at(0, f), g_j = atom<N>(received_, c, j).at(0, f);
                    const Filters filter = pair(l.w, c, p).at(0, f), w = enveloped_filter(cutoff, filter);
                    V by = g_i * atom<Z>(l.z, c, j).at(0, f);
                    accumulate(by, g_j, atom<Z>(l.z, c, i).at(0, f));
                    if constexpr (IS_DUAL<N>) {
                        pair(by_w_, c, p).put(0, f, cutoff * by);
                        if (by_blocks_) accumulate(by_length, by, filter);
                    } else {
                        by_length += by * w.rate;
                    }
                    if (!senders) continue;
                    atom<Z>(by_z_, c, j).accumulate_at(0, f, in_numbers(w), g_i);
                    atom<Z>(by_z_, c, i).accumulate_at(0, f, in_numbers(w), g_j);
                }
                if (!by_blocks_) continue;
                N sum = sum_of<N>(by_length);
                if constexpr (IS_DUAL<N>) sum = sum * N{pairs_.fall[p], pairs_.speed(p) * pairs_.bend[p]};
                by_blocks_[c * a_.pairs + p] = sum;
            }
        });
        if (by_blocks_) this->add_blocks(by_blocks_, a_.pairs, by_pair_);
        if constexpr (IS_DUAL<N>) filter_back(l);
    }

    // From derivatives by the filters, of dual numbers, to those by their weights and by the lengths.
    void filter_back(const Layer& l) const {
        pieces(threads_, a_.pairs, FILTER_PIECE, [&](int64_t p0, int64_t p1) {
            Scratch<T> scratch;
            const int64_t n = p1 - p0;
            const Rows<N> by_w = rows(by_filter_, p0, n, scratch), by_h = rows(by_filter_h_, p0, n, scratch);
            each(n, [&](int64_t p, int64_t f) { by_w.put(p, f, pair(by_w_, f / WIDTH<T>, p0 + p).at(0, f % WIDTH<T>)); });
            apply(l.filters.out_t, by_w, by_h, n);
            chain(Rows<N>{l.filter_slope, fp_}.from(p0), by_h, n);
            if (!of_pairs()) return;
            const Rows<N> by_basis = rows(nullptr, 0, n, pairs_.row, scratch);
            apply(l.filters.in_t, by_h, by_basis, n);
            for (int64_t p = 0; p < n; ++p) {
                V sum = {};
                for (int64_t k = 0; k < pairs_.row; k += Simd<T>::lanes)
                    accumulate(sum, by_basis.at(p, k), radial(pairs_.slope, pairs_.curvature, p0 + p, k));
                by_pair_[p0 + p] += sum_of<N>(sum);
            }
        });
        if (!by_weights_) return;
        const int64_t k = 1 + 9 * l.number;
        const Rows<N> by_h = {by_filter_h_, fp_}, by_w = {by_filter_, fp_};
        linear_back<N>(threads_, basis_, a_.radial, by_h, 1, f_, a_.pairs, by_weight(k), by_weight(k + 1));
        linear_back<N>(threads_, {l.filter_hidden, fp_}, f_, by_w, 1, f_, a_.pairs, by_weight(k + 2), by_weight(k + 3));
    }

    // From derivatives by senders to those by the features, which are added.
    template <typename Z>
    void send_back(const Layer& l, int64_t start, int64_t n, const Rows<Z>& by_x, Scratch<T>& scratch) const {
        const Rows<Z> by_z = Base::template rows<Z>(by_sent_, start, n, fp_, scratch);
        each(n, [&](int64_t i, int64_t f) { by_z.put(i, f, atom<Z>(by_z_, f / WIDTH<T>, start + i).at(0, f % WIDTH<T>)); });
        apply(l.senders_t, by_z, by_x, n, true);
    }

    template <typename Z>
    void sender_weights(const Layer& l) const {
        linear_back<Z>(threads_, {l.x, fp_}, f_, {by_sent_, fp_}, 1, f_, n_, by_weight(5 + 9 * l.number), nullptr);
    }

    // Derivatives by the weights before the first messages.
    void first_weights(const Layer& l) const {
        each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
            // The way back through the updates is done: its memory is free.
            const Rows<T> by_x = Rows<T>{by_h_, fp_}.from(start);
            each(n, [&](int64_t i, int64_t f) { by_x.put(i, f, asked(Rows<N>{by_x_, fp_}.at(start + i, f))); });
            send_back<T>(l, start, n, by_x, scratch);
        });
        sender_weights<T>(l);
        this->embedding_back({by_h_, fp_});
    }

    // The features after a layer from those before it, of a kind of numbers Z.
    template <typename Z>
    void update(const Layer& l, int64_t start, int64_t n, const Rows<N>& to, Scratch<T>& scratch) const {
        const Rows<N> m = rows(l.m, start, n, scratch), a = rows(l.a, start, n, scratch), slope = Rows<N>{l.slope, fp_}.from(start);
        const Rows<Z> x = Rows<Z>{l.x, fp_}.from(start);
        each(n, [&](int64_t i, int64_t f) { m.put(i, f, atom<N>(received_, f / WIDTH<T>, start + i).at(0, f % WIDTH<T>)); });
        apply(l.update.in, m, slope, n);
        activate(act_, slope, a, n);
        each(n, [&](int64_t i, int64_t f) { to.put(i, f, x.at(i, f)); });
        const Rows<N> change = rows(nullptr, start, n, scratch);
        apply(l.update.out, a, change, n);
        each(n, [&](int64_t i, int64_t f) { to.add(i, f, change.at(i, f)); });
    }

    // Derivatives by what was received from those by the features, which stay as they are.
    void update_back(const Layer& l, int64_t start, int64_t n, Scratch<T>& scratch) const {
        const Rows<N> by_h = rows(by_h_, start, n, scratch), by_m = rows(nullptr, start, n, scratch);
        apply(l.update.out_t, Rows<N>{by_x_, fp_}.from(start), by_h, n);
        chain(Rows<N>{l.slope, fp_}.from(start), by_h, n);
        apply(l.update.in_t, by_h, by_m, n);
        each(n, [&](int64_t i, int64_t f) { atom<N>(received_, f / WIDTH<T>, start + i).put(0, f % WIDTH<T>, by_m.at(i, f)); });
    }

    void update_weights(const Layer& l) const {
        const int64_t k = 6 + 9 * l.number;
        const Rows<N> by_h = {by_h_, fp_}, by_x = {by_x_, fp_};
        linear_back<N>(threads_, {l.m, fp_}, f_, by_h, 1, f_, n_, by_weight(k), by_weight(k + 1));
        linear_back<N>(threads_, {l.a, fp_}, f_, by_x, 1, f_, n_, by_weight(k + 2), by_weight(k + 3));
    }

    static constexpr int64_t FILTER_PIECE = 60;  // pairs

    std::vector<Layer> layers_;
    Rows<Filter> basis_ = {};                    // (P, K)
    T *x_ = nullptr, *by_x_ = nullptr;           // (N, Fp): the last features, and the derivatives by each layer's
    T *received_ = nullptr, *by_z_ = nullptr;    // (blocks, N, WIDTH): messages, later the derivatives by them; by senders
    T* by_w_ = nullptr;                          // (blocks, P, WIDTH): derivatives by filters, of dual numbers
    N *by_pair_ = nullptr, *by_blocks_ = nullptr;  // by lengths (P,), and of a layer (blocks, P)
    // For the derivatives by weights, or null: derivatives by the results of linear maps.
    T *by_sent_ = nullptr, *by_h_ = nullptr, *by_filter_ = nullptr, *by_filter_h_ = nullptr;
};

}  // namespace
