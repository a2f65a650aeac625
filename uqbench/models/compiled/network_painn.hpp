// PaiNN for `CompiledNetwork`: the network of models/painn.py and its derivatives.

#pragma once

#include "painn_pairs.hpp"

namespace {

template <typename T>
struct PainnWeights {
    // kinds and parts are blocks of Fp channels.
    struct Layer {
        int64_t kinds, parts;
        Linear<T> filters;  // panels (kinds, blocks, K + 1, WIDTH)
        Mlp<T> context;
        Linear<T> mix, mix_t, in, in_t, norm_in, norm_in_t, out, out_t;  // of the mixing: in and norm_in are added
    };

    const T* embedding;
    std::vector<Layer> layers;
    Heads<T> heads;

    static int64_t count(const NetworkArguments<T>& a) { return 1 + 11 * a.layers + 4 * (1 + a.heads); }

    PainnWeights(const NetworkArguments<T>& a, Layout<T>& layout)
        : embedding(layout.table(layout.next(a.species, a.channels))), layers(read(a, layout)), heads(a, layout) {}

  private:
    static std::vector<Layer> read(const NetworkArguments<T>& a, Layout<T>& layout) {
        std::vector<Layer> layers;
        const int64_t f = a.channels;
        for (int64_t k = 0; k < a.layers; ++k) {
            Layer l;
            l.kinds = k == 0 ? 2 : 3, l.parts = k == a.layers - 1 ? 2 : 3;
            const Raw<T> filters = layout.next(a.radial, f, l.kinds), constant = layout.next(1, f, l.kinds);
            l.filters = layout.forward(filters, {}, 1, constant);
            l.context = layout.mlp(f, f, f, l.kinds, true);
            const Raw<T> mix = layout.next(f, f, 2), in = layout.next(f, f), norm_in = layout.rest(in, f);
            const Raw<T> in_bias = layout.next(1, f), out = layout.next(f, f, l.parts), out_bias = layout.next(1, f, l.parts);
            l.mix = layout.forward(mix), l.mix_t = layout.backward(mix, true);
            l.in = layout.forward(in, in_bias), l.in_t = layout.backward(in, false);
            l.norm_in = layout.forward(norm_in), l.norm_in_t = layout.backward(norm_in, false);
            l.out = layout.forward(out, out_bias), l.out_t = layout.backward(out, true);
            layers.push_back(l);
        }
        return layers;
    }
};

template <typename N>
class PainnNetwork : CompiledNetwork<N, PainnWeights<Real<N>>> {
    using Base = CompiledNetwork<N, PainnWeights<Real<N>>>;
    using typename Base::T, typename Base::V;
    using Base::a_, Base::act_, Base::blocks_, Base::by_weight, Base::by_weights_, Base::each, Base::each_atom, Base::f_,
        Base::fp_, Base::kept, Base::n_, Base::numbers, Base::of_pairs, Base::pairs_, Base::place, Base::scratch_,
        Base::threads_, Base::weights_;

    // One layer, and what its way back needs of its way there: all atoms' rows. Before the messages the first layer has
    // no rates and no μ.
    struct Layer : PainnWeights<T>::Layer {
        int64_t number;
        T *mu, *slope, *x;                 // before the messages: (N, 3, Fp), the MLP's slopes (N, Fp) and results
        T* z;                              // senders (blocks, N, 2 or 5, WIDTH)
        T *vw, *norm, *mixed_slope, *abd;  // (N, 3, 2 Fp), (N, Fp), the MLP's slopes and results
        T *q, *a, *q2, *mu2, *a2;          // inputs of linear maps, for the derivatives by these; or null
        int64_t senders() const { return mu ? 5 : 2; }
    };

    static constexpr int64_t RECEIVER = 4;

  public:
    static constexpr bool enveloped = true;

    using Base::Base;

    void evaluate() {
        for (const auto& layer : weights_.layers) layers_.push_back(with_room(layer, layers_.size()));
        state_ = scratch_.take(blocks_ * n_ * RECEIVER * PARTS<N> * WIDTH<T>);
        by_z_ = scratch_.take(blocks_ * n_ * 5 * PARTS<N> * WIDTH<T>);
        by_x_ = kept(n_, 3 * fp_), by_h_ = kept(n_, fp_), by_abd_ = kept(n_, 3 * fp_), by_h2_ = kept(n_, fp_);
        by_vw_ = kept(n_, 6 * fp_), by_first_ = kept(n_, fp_), last_ = kept(n_, fp_);
        each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
            const Rows<T> q = Base::template rows<T>(layers_[0].q, start, n, fp_, scratch);
            this->embed(start, n, q);
            before_messages<T>(layers_[0], start, n, q, {}, scratch);
        });
        for (int64_t k = 0; k < a_.layers; ++k) {
            messages(layers_[k]);
            const Layer* next = k < a_.layers - 1 ? &layers_[k + 1] : nullptr;
            each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
                const Rows<N> q2 = rows(layers_[k].q2, start, n, fp_, scratch), mu2 = rows(layers_[k].mu2, 3 * start, 3 * n, fp_, scratch);
                const Rows<N> q = by_weights_ ? rows(next ? next->q : last_, start, n, fp_, scratch) : q2;
                const Rows<N> mu = next ? rows(next->mu, 3 * start, 3 * n, fp_, scratch) : mu2;
                load(start, n, q2, mu2);
                mix(layers_[k], start, n, q2, mu2, q, mu, scratch);
                if (next) return before_messages<N>(*next, start, n, q, mu, scratch);
                const Rows<N> by_q = rows(nullptr, start, n, fp_, scratch), by_mu = rows(nullptr, start, 3 * n, fp_, scratch);
                this->head(q, start, n, by_q, scratch);
                mix_back(layers_[k], start, n, by_q, by_mu, scratch);
            });
        }
        if (by_weights_) this->head_weights(last_, 1 + 11 * a_.layers);
        by_pair_ = numbers(a_.pairs * 4);
        N* by_blocks = of_pairs() ? numbers(blocks_ * a_.pairs * 4) : nullptr;
        for (int64_t k = a_.layers - 1; k >= 0; --k) {
            const Layer& l = layers_[k];
            if (by_weights_) mix_weights(l);
            messages_back(l, by_blocks);
            if (k == 0) break;
            each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
                const Rows<N> by_q = rows(nullptr, start, n, fp_, scratch), by_mu = rows(nullptr, start, 3 * n, fp_, scratch);
                load(start, n, by_q, by_mu);
                before_messages_back<N>(l, start, n, by_q, by_mu, scratch);
                mix_back(layers_[k - 1], start, n, by_q, by_mu, scratch);
            });
            if (by_weights_) context_weights<N>(l);
        }
        if (by_weights_) first_weights(layers_[0]);
        this->template finish<4>(by_pair_);
    }

  private:
    Layer with_room(const typename PainnWeights<T>::Layer& weights, int64_t number) {
        Layer l = {};
        static_cast<typename PainnWeights<T>::Layer&>(l) = weights;
        const int64_t all = n_ * PARTS<N> * fp_, before = number == 0 ? n_ * fp_ : all;
        l.number = number;
        l.mu = number == 0 ? nullptr : scratch_.take(3 * all);
        l.slope = scratch_.take(before), l.x = scratch_.take(l.kinds * before), l.z = scratch_.take(l.senders() * before);
        l.vw = scratch_.take(6 * all), l.norm = scratch_.take(all), l.mixed_slope = scratch_.take(all);
        l.abd = scratch_.take(l.parts * all);
        l.q = kept(n_, fp_), l.a = kept(n_, fp_), l.q2 = kept(n_, fp_), l.mu2 = kept(3 * n_, fp_), l.a2 = kept(n_, fp_);
        return l;
    }

    static Rows<N> rows(T* all, int64_t start, int64_t n, int64_t width, Scratch<T>& scratch) {
        return Base::template rows<N>(all, start, n, width, scratch);
    }

    // An atom's blocked features that have the channel f, and its place in their rows.
    template <typename Z>
    Rows<Z> blocked(T* features, int64_t kinds, int64_t atom, int64_t f) const {
        return this->template place<Z>(features, kinds, f / WIDTH<T>, atom);
    }
    static int64_t within(int64_t f) { return f % WIDTH<T>; }

    void load(int64_t start, int64_t n, const Rows<N>& q, const Rows<N>& mu) const {
        each(n, [&](int64_t i, int64_t f) {
            const Rows<N> here = blocked<N>(state_, RECEIVER, start + i, f);
            q.put(i, f, here.at(0, within(f)));
            for (int x = 0; x < 3; ++x) mu.put(3 * i + x, f, here.at(1 + x, within(f)));
        });
    }

    template <typename Z>
    void store(int64_t start, int64_t n, const Rows<Z>& q, const Rows<N>& mu) const {
        each(n, [&](int64_t i, int64_t f) {
            const Rows<N> here = blocked<N>(state_, RECEIVER, start + i, f);
            here.put(0, within(f), q.at(i, f));
            for (int x = 0; x < 3; ++x)
                if (mu)
                    here.put(1 + x, within(f), mu.at(3 * i + x, f));
                else
                    here.put(1 + x, within(f), Vector<T>{});
        });
    }

    // Senders from the features (n, Fp) and (n, 3, Fp); μ is null, for zero, in the first layer, where Z is real.
    template <typename Z>
    void before_messages(const Layer& l, int64_t start, int64_t n, const Rows<Z>& q, const Rows<N>& mu, Scratch<T>& scratch) const {
        const Rows<Z> a = Base::template rows<Z>(l.a, start, n, fp_, scratch);
        const Rows<Z> slope = Rows<Z>{l.slope, fp_}.from(start), x = Rows<Z>{l.x, l.kinds * fp_}.from(start);
        apply(l.context.in, q, slope, n);
        activate(act_, slope, a, n);
        apply(l.context.out, a, x, n);
        each(n, [&](int64_t i, int64_t f) {
            const Rows<Z> to = blocked<Z>(l.z, l.senders(), start + i, f);
            for (int kind = 0; kind < 2; ++kind) to.put(kind, within(f), x.at(i, kind * fp_ + f));
            if constexpr (std::is_same_v<Z, N>)
                for (int c = 0; mu && c < 3; ++c) to.put(2 + c, within(f), x.at(i, 2 * fp_ + f) * mu.at(3 * i + c, f));
        });
        store(start, n, q, mu);
    }

    // From derivatives by senders and, in place, by the features after the messages to those by the features before.
    template <typename Z>
    void before_messages_back(const Layer& l, int64_t start, int64_t n, const Rows<Z>& by_q, const Rows<Z>& by_mu, Scratch<T>& scratch) const {
        const Rows<Z> by_x = Base::template rows<Z>(by_x_, start, n, l.kinds * fp_, scratch);
        const Rows<Z> by_h = Base::template rows<Z>(by_h_, start, n, fp_, scratch);
        const Rows<Z> x = Rows<Z>{l.x, l.kinds * fp_}.from(start), mu = Rows<Z>{l.mu, fp_}.from(3 * start);
        each(n, [&](int64_t i, int64_t f) {
            const Rows<Z> by = blocked<Z>(by_z_, l.senders(), start + i, f);
            for (int kind = 0; kind < 2; ++kind) by_x.put(i, kind * fp_ + f, by.at(kind, within(f)));
            if (!mu) return;
            Many<Z> by_v = {};
            for (int c = 0; c < 3; ++c) {
                const Many<Z> by_p = by.at(2 + c, within(f));
                accumulate(by_v, by_p, mu.at(3 * i + c, f));
                by_mu.accumulate_at(3 * i + c, f, x.at(i, 2 * fp_ + f), by_p);
            }
            by_x.put(i, 2 * fp_ + f, by_v);
        });
        apply(l.context.out_t, by_x, by_h, n);
        chain(Rows<Z>{l.slope, fp_}.from(start), by_h, n);
        apply(l.context.in_t, by_h, by_q, n, true);
    }

    template <typename Z>
    void context_weights(const Layer& l) const {
        const int64_t k = 3 + 11 * l.number;
        const Rows<Z> by_h = {by_h_, fp_}, by_x = {by_x_, l.kinds * fp_};
        linear_back<Z>(threads_, {l.q, fp_}, f_, by_h, 1, f_, n_, by_weight(k), by_weight(k + 1));
        linear_back<Z>(threads_, {l.a, fp_}, f_, by_x, l.kinds, f_, n_, by_weight(k + 2), by_weight(k + 3));
    }

    // Derivatives by the weights before the first messages.
    void first_weights(const Layer& l) const {
        each_atom([&](int64_t start, int64_t n, Scratch<T>& scratch) {
            const Rows<T> by_q = Rows<T>{by_first_, fp_}.from(start);
            each(n, [&](int64_t i, int64_t f) {
                by_q.put(i, f, asked(blocked<N>(state_, RECEIVER, start + i, f).at(0, within(f))));
            });
            before_messages_back<T>(l, start, n, by_q, {}, scratch);
        });
        context_weights<T>(l);
        this->embedding_back({by_first_, fp_});
    }

    template <int KINDS>
    PainnPairs<N, KINDS> of_block(const Layer& l, int64_t block) const {
        const int64_t size = l.filters.inner * WIDTH<T>;
        return {a_, pairs_, l.filters.panels + block * size, blocks_ * size};
    }

    T* senders(const Layer& l, T* z, int64_t block) const {
        return l.mu ? this->template place<N>(z, 5, block, 0).data : this->template place<T>(z, 2, block, 0).data;
    }
    T* receivers(int64_t block) const { return this->template place<N>(state_, RECEIVER, block, 0).data; }

    void messages(const Layer& l) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            if (l.mu)
                of_block<3>(l, c).message(senders(l, l.z, c), receivers(c));
            else
                of_block<2>(l, c).message(senders(l, l.z, c), receivers(c));
        });
    }

    void messages_back(const Layer& l, N* by_blocks) const {
        each_block(blocks_, this->message_threads(), [&](int64_t c) {
            T *z = senders(l, l.z, c), *g = receivers(c), *by_z = l.mu || by_weights_ ? senders(l, by_z_, c) : nullptr;
            N* by_pair = by_blocks ? by_blocks + c * 4 * a_.pairs : nullptr;
            Scratch<T> own;
            T* by_c = by_weights_ ? own.zeros(l.kinds * pairs_.row * WIDTH<T>) : nullptr;
            if (by_z) std::memset(by_z, 0, n_ * (l.mu ? 5 * PARTS<N> : 2) * WIDTH<T> * sizeof(T));
            if (l.mu)
                of_block<3>(l, c).pullback(z, g, by_z, by_c, by_pair);
            else
                of_block<2>(l, c).pullback(z, g, by_z, by_c, by_pair);
            if (by_c) write_filters(l, c * WIDTH<T>, by_c);
        });
        if (by_blocks) this->add_blocks(by_blocks, 4 * a_.pairs, by_pair_);
    }

    // Derivatives by the filters' weights and bias, from those by C (kinds, K + 1, WIDTH) of a block of channels.
    void write_filters(const Layer& l, int64_t channel, const T* by_c) const {
        T *to = by_weight(1 + 11 * l.number), *to_bias = by_weight(2 + 11 * l.number);
        const int64_t size = std::min<int64_t>(WIDTH<T>, f_ - channel) * sizeof(T);
        for (int64_t kind = 0; kind < l.kinds; ++kind)
            for (int64_t k = 0; k < pairs_.row; ++k) {
                const T* from = by_c + (kind * pairs_.row + k) * WIDTH<T>;
                T* row = k < a_.radial ? (to ? to + k * l.kinds * f_ : nullptr) : to_bias;
                if (row) std::memcpy(row + kind * f_ + channel, from, size);
            }
    }

    // The atoms' v and w = μ V and μ W, (n, 3) rows: v first, w from the channel Fp on.
    Rows<N> vw(const Layer& l, int64_t start) const { return Rows<N>{l.vw, 2 * fp_}.from(3 * start); }

    // Mixing of the atoms' features q and mu to q_out and, but in the last layer, mu_out, which may be the same.
    void mix(const Layer& l, int64_t start, int64_t n, const Rows<N>& q, const Rows<N>& mu, const Rows<N>& q_out,
             const Rows<N>& mu_out, Scratch<T>& scratch) const {
        const Rows<N> vw = this->vw(l, start), norm = Rows<N>{l.norm, fp_}.from(start);
        const Rows<N> slope = Rows<N>{l.mixed_slope, fp_}.from(start), abd = Rows<N>{l.abd, l.parts * fp_}.from(start);
        const Rows<N> a = rows(l.a2, start, n, fp_, scratch);
        apply(l.mix, mu, vw, 3 * n);
        each(n, [&](int64_t i, int64_t f) {
            V square = {};
            for (int x = 0; x < 3; ++x) {
                const V v = vw.at(3 * i + x, f);
                accumulate(square, v, v);
            }
            norm.put(i, f, root<N>(add_real(square, EPSILON)));
        });
        apply(l.in, q, slope, n);
        apply(l.norm_in, norm, slope, n, true);
        activate(act_, slope, a, n);
        apply(l.out, a, abd, n);
        each(n, [&](int64_t i, int64_t f) {
            V sum = q.at(i, f) + abd.at(i, f);
            accumulate(sum, abd.at(i, fp_ + f), inner(vw, i, f));
            q_out.put(i, f, sum);
            for (int x = 0; l.parts == 3 && x < 3; ++x) {
                V m = mu.at(3 * i + x, f);
                accumulate(m, abd.at(i, 2 * fp_ + f), vw.at(3 * i + x, fp_ + f));
                mu_out.put(3 * i + x, f, m);
            }
        });
    }

    V inner(const Rows<N>& vw, int64_t i, int64_t f) const {
        V sum = {};
        for (int x = 0; x < 3; ++x) accumulate(sum, vw.at(3 * i + x, f), vw.at(3 * i + x, fp_ + f));
        return sum;
    }

    // From derivatives by the features after the mixing, which are overwritten, to those before it, for the messages. After
    // the last mixing there is none by μ.
    void mix_back(const Layer& l, int64_t start, int64_t n, const Rows<N>& by_q, const Rows<N>& by_mu, Scratch<T>& scratch) const {
        const bool last = l.parts == 2;
        const Rows<N> vw = this->vw(l, start), norm = Rows<N>{l.norm, fp_}.from(start), abd = Rows<N>{l.abd, l.parts * fp_}.from(start);
        const Rows<N> by_abd = rows(by_abd_, start, n, l.parts * fp_, scratch), by_h = rows(by_h2_, start, n, fp_, scratch);
        const Rows<N> by_norm = rows(nullptr, 0, n, fp_, scratch), by_vw = rows(by_vw_, 3 * start, 3 * n, 2 * fp_, scratch);
        each(n, [&](int64_t i, int64_t f) {
            const V g = by_q.at(i, f);
            by_abd.put(i, f, g);
            by_abd.put(i, fp_ + f, g * inner(vw, i, f));
            if (last) return;
            V by_d = {};
            for (int x = 0; x < 3; ++x) accumulate(by_d, by_mu.at(3 * i + x, f), vw.at(3 * i + x, fp_ + f));
            by_abd.put(i, 2 * fp_ + f, by_d);
        });
        apply(l.out_t, by_abd, by_h, n);
        chain(Rows<N>{l.mixed_slope, fp_}.from(start), by_h, n);
        apply(l.norm_in_t, by_h, by_norm, n);
        each(n, [&](int64_t i, int64_t f) {
            const V by_inner = by_q.at(i, f) * abd.at(i, fp_ + f), by_square = by_norm.at(i, f) / norm.at(i, f);
            for (int x = 0; x < 3; ++x) {
                const V v = vw.at(3 * i + x, f), w = vw.at(3 * i + x, fp_ + f);
                V by_v = by_inner * w, by_w = by_inner * v;
                accumulate(by_v, by_square, v);
                if (!last) accumulate(by_w, by_mu.at(3 * i + x, f), abd.at(i, 2 * fp_ + f));
                by_vw.put(3 * i + x, f, by_v);
                by_vw.put(3 * i + x, fp_ + f, by_w);
            }
        });
        apply(l.mix_t, by_vw, by_mu, 3 * n, !last);
        apply(l.in_t, by_h, by_q, n, true);
        store(start, n, by_q, by_mu);
    }

    void mix_weights(const Layer& l) const {
        const int64_t k = 7 + 11 * l.number;
        const Rows<N> by_h = {by_h2_, fp_}, by_abd = {by_abd_, l.parts * fp_}, by_vw = {by_vw_, 2 * fp_};
        linear_back<N>(threads_, {l.mu2, fp_}, f_, by_vw, 2, f_, 3 * n_, by_weight(k), nullptr);
        linear_back<N>(threads_, {l.q2, fp_}, f_, by_h, 1, f_, n_, by_weight(k + 1), by_weight(k + 2));
        linear_back<N>(threads_, {l.norm, fp_}, f_, by_h, 1, f_, n_, by_weight(k + 1), nullptr, f_);
        linear_back<N>(threads_, {l.a2, fp_}, f_, by_abd, l.parts, f_, n_, by_weight(k + 3), by_weight(k + 4));
    }

    std::vector<Layer> layers_;
    T *state_ = nullptr, *by_z_ = nullptr;  // receivers' features, later the derivatives by them; derivatives by senders'
    N* by_pair_ = nullptr;                  // sums of derivatives by directions and lengths (P, 4)
    // For the derivatives by weights, or null: derivatives by the results of linear maps; the first and the last q.
    T *by_x_ = nullptr, *by_h_ = nullptr, *by_abd_ = nullptr, *by_h2_ = nullptr, *by_vw_ = nullptr;
    T *by_first_ = nullptr, *last_ = nullptr;
};

}  // namespace
