// SchNet for `Engine`: the network of backbones/schnet.py and its derivative.

#pragma once

#include "engine.hpp"
#include "schnet.hpp"

namespace {

template <typename T>
class SchnetEngine : Engine<T> {
    using Base = Engine<T>;
    using Base::a_, Base::act_, Base::f_, Base::fp_, Base::n_, Base::pairs_, Base::reader_, Base::scratch_, Base::take,
        Base::threads_;

    // What one layer's way back needs of its way there.
    struct Layer {
        bool first;
        Mlp<T> filters, update;
        Linear<T> senders, senders_t;
        T *filter_pre, *plain, *w;  // (P, Fp): hidden layer of the filters, filters without and with the cutoff
        T *z, *pre;                 // (N, Fp): senders, hidden layer of the update
    };

  public:
    using Base::Base;

    void evaluate() {
        this->read_geometry(false);
        T* x = this->embed();
        std::vector<Layer> layers;
        for (int64_t k = 0; k < a_.layers; ++k) {
            layers.push_back(read(k == 0));
            interact(layers.back(), x);
        }
        T *by_x = this->head(x), *by_distance = scratch_.zeros(a_.pairs);
        for (int64_t k = a_.layers - 1; k >= 0; --k) interact_back(layers[k], by_x, by_distance);
        this->write_vectors(by_distance, nullptr, 0);
    }

  private:
    Layer read(bool first) {
        Layer l = {};
        l.first = first;
        l.filters = reader_.mlp(a_.radial, f_, fp_, fp_);
        l.senders = reader_.linear(f_, fp_, false), l.senders_t = reader_.linear(f_, fp_, false);
        l.update = reader_.mlp(f_, f_, fp_, fp_);
        return l;
    }

    SchnetArguments<T> arguments(const Layer& l) const {
        SchnetArguments<T> m = {};
        m.atoms = n_, m.pairs = a_.pairs, m.members = 1, m.channels = f_, m.threads = this->message_threads();
        m.first = a_.first, m.second = a_.second, m.w = {l.w, 0, 0, fp_}, m.z = {l.z, 0, 0, fp_};
        return m;
    }

    // Calls body(pair, index of a vector) for rows (P, Fp).
    template <typename Body>
    void each_pair(Body body) const {
        pieces(threads_, a_.pairs, 128, [&](int64_t p0, int64_t p1) {
            for (int64_t p = p0; p < p1; ++p)
                for (int64_t k = 0; k < fp_ / Simd<T>::lanes; ++k) body(p, k);
        });
    }

    void interact(Layer& l, T*& x) {
        const int64_t size = a_.pairs * fp_;
        l.filter_pre = take(size), l.plain = take(size), l.w = take(size), l.z = take(n_ * fp_), l.pre = take(n_ * fp_);
        T *hidden = take(size), *m = take(n_ * fp_), *a = take(n_ * fp_), *out = take(n_ * fp_);
        apply(l.filters.in, pairs_.basis, pairs_.row, l.filter_pre, fp_, a_.pairs, false, threads_);
        activate(act_, l.filter_pre, hidden, size, threads_);
        apply(l.filters.out, hidden, fp_, l.plain, fp_, a_.pairs, false, threads_);
        each_pair([&](int64_t p, int64_t k) {
            vector(l.w + p * fp_, k) = pairs_.envelope[p] * vector(l.plain + p * fp_, k);
        });
        apply(l.senders, x, fp_, l.z, fp_, n_, false, threads_);
        SchnetArguments<T> message = arguments(l);
        message.by_g = {m, 0, 0, fp_};
        run<T, Schnet>(message, [](auto& kernel) { kernel.message(); });
        apply(l.update.in, m, fp_, l.pre, fp_, n_, false, threads_);
        activate(act_, l.pre, a, n_ * fp_, threads_);
        apply(l.update.out, a, fp_, out, fp_, n_, false, threads_);
        for (int64_t k = 0; k < n_ * fp_ / Simd<T>::lanes; ++k) vector(out, k) += vector(x, k);
        x = out;
    }

    // Derivatives by x, in place, and by the lengths, added.
    void interact_back(const Layer& l, T* by_x, T* by_distance) {
        const int64_t size = a_.pairs * fp_, row = pairs_.row;
        T *by_a = take(n_ * fp_), *by_m = take(n_ * fp_), *by_w = take(size), *by_z = take(n_ * fp_), *by_hidden = take(size);
        apply(l.update.out_t, by_x, fp_, by_a, fp_, n_, false, threads_);
        chain(act_, l.pre, by_a, n_ * fp_, threads_);
        apply(l.update.in_t, by_a, fp_, by_m, fp_, n_, false, threads_);
        SchnetArguments<T> message = arguments(l);
        message.g = {by_m, 0, 0, fp_}, message.by_w = {by_w, 0, 0, fp_};
        if (!l.first) message.by_z = {by_z, 0, 0, fp_};
        run<T, Schnet>(message, [](auto& kernel) { kernel.pullback(); });
        if (!l.first) apply(l.senders_t, by_z, fp_, by_x, fp_, n_, true, threads_);
        pieces(threads_, a_.pairs, 128, [&](int64_t p0, int64_t p1) {
            for (int64_t p = p0; p < p1; ++p) {
                Vector<T> by_envelope = {};
                for (int64_t k = 0; k < fp_ / Simd<T>::lanes; ++k) {
                    Vector<T>& by = vector(by_w + p * fp_, k);
                    by_envelope += by * vector(l.plain + p * fp_, k);
                    by *= pairs_.envelope[p];
                }
                by_distance[p] += total<T>(by_envelope) * pairs_.fall[p];
            }
        });
        apply(l.filters.out_t, by_w, fp_, by_hidden, fp_, a_.pairs, false, threads_);
        chain(act_, l.filter_pre, by_hidden, size, threads_);
        const int64_t columns = padded<T>(a_.radial);
        T* by_basis = scratch_.take(a_.pairs * columns);
        apply(l.filters.in_t, by_hidden, fp_, by_basis, columns, a_.pairs, false, threads_);
        for (int64_t p = 0; p < a_.pairs; ++p)
            for (int64_t k = 0; k < row; ++k) by_distance[p] += by_basis[p * columns + k] * pairs_.slope[p * row + k];
    }
};

}  // namespace
