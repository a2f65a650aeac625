// The derivatives of SchNet's form; arguments and names are those of schnet.py. Items as in painn.hpp.

#pragma once

#include "simd.hpp"

namespace {

template <typename T>
struct SchnetArguments {
    int64_t atoms, pairs, members, channels, threads;
    const int64_t *first, *second;
    Features<T> w, z, g, w2, z2;  // of filters, `atom` is the stride of pairs
    Features<T> by_w, by_z, by_g;
};

template <typename T>
class Schnet {
  public:
    Schnet(const SchnetArguments<T>& a, const Place& place) : a_(a), place_(place) {
        z_ = packed(a.z);
        g_ = packed(a.g);
    }

    void message() {
        const Packed<T> out = room();
        pairs([&](int64_t i, int64_t j, int64_t p) {
            for (int k = 0; k < 2; ++k) {
                const Vector<T> w = filter(a_.w, p, k);
                out.at(i, 0, k) += w * z_.at(j, 0, k);
                out.at(j, 0, k) += w * z_.at(i, 0, k);
            }
        });
        unpack(out, 0, place_, a_.atoms, 1, a_.by_g);
    }

    void pullback() {
        const Packed<T> by_z = room();
        pairs([&](int64_t i, int64_t j, int64_t p) {
            for (int k = 0; k < 2; ++k) {
                const Vector<T> g_i = g_.at(i, 0, k), g_j = g_.at(j, 0, k);
                if (a_.by_w.data) by_filter(p, k, z_.at(j, 0, k) * g_i + z_.at(i, 0, k) * g_j);
                if (a_.by_z.data) {
                    const Vector<T> w = filter(a_.w, p, k);
                    by_z.at(j, 0, k) += w * g_i;
                    by_z.at(i, 0, k) += w * g_j;
                }
            }
        });
        if (a_.by_z.data) unpack(by_z, 0, place_, a_.atoms, 1, a_.by_z);
    }

    void second() {
        const Packed<T> by_z = room(), by_g = room(), z2 = packed(a_.z2);
        pairs([&](int64_t i, int64_t j, int64_t p) {
            for (int k = 0; k < 2; ++k) {
                const Vector<T> g_i = g_.at(i, 0, k), g_j = g_.at(j, 0, k);
                Vector<T> to_i = {}, to_j = {};
                if (z2.data) {
                    const Vector<T> w = filter(a_.w, p, k), z2_i = z2.at(i, 0, k), z2_j = z2.at(j, 0, k);
                    if (a_.by_w.data) by_filter(p, k, z2_j * g_i + z2_i * g_j);
                    to_i += w * z2_j, to_j += w * z2_i;
                }
                if (a_.w2.data) {
                    const Vector<T> w2 = filter(a_.w2, p, k);
                    to_i += w2 * z_.at(j, 0, k), to_j += w2 * z_.at(i, 0, k);
                    by_z.at(j, 0, k) += w2 * g_i;
                    by_z.at(i, 0, k) += w2 * g_j;
                }
                by_g.at(i, 0, k) += to_i;
                by_g.at(j, 0, k) += to_j;
            }
        });
        if (a_.by_z.data) unpack(by_z, 0, place_, a_.atoms, 1, a_.by_z);
        unpack(by_g, 0, place_, a_.atoms, 1, a_.by_g);
    }

  private:
    template <typename Body>
    void pairs(Body body) const {
        for (int64_t p = 0; p < a_.pairs; ++p) body(a_.first[p], a_.second[p], p);
    }

    Packed<T> room() { return {scratch_.zeros(a_.atoms * WIDTH<T>), 1}; }

    Packed<T> packed(const Features<T>& x) {
        if (!x.data) return {};
        const Packed<T> own = room();
        pack(x, place_, a_.atoms, 1, own, 0);
        return own;
    }

    // Channels of part k that there are.
    int64_t here(int k) const {
        return std::clamp<int64_t>(place_.width - k * Simd<T>::lanes, 0, Simd<T>::lanes);
    }

    T* row(const Features<T>& x, int64_t pair, int k) const {
        return x.data + place_.member * x.member + pair * x.atom + place_.channel + k * Simd<T>::lanes;
    }

    // Filters are used once: they are not packed.
    Vector<T> filter(const Features<T>& x, int64_t pair, int k) const {
        if (place_.width == WIDTH<T>) return *reinterpret_cast<const typename Simd<T>::Loose*>(row(x, pair, k));
        Vector<T> value = {};
        if (here(k)) std::memcpy(&value, row(x, pair, k), here(k) * sizeof(T));
        return value;
    }

    void by_filter(int64_t pair, int k, Vector<T> value) const {
        if (place_.width == WIDTH<T>)
            *reinterpret_cast<typename Simd<T>::Loose*>(row(a_.by_w, pair, k)) = value;
        else if (here(k))
            std::memcpy(row(a_.by_w, pair, k), &value, here(k) * sizeof(T));
    }

    const SchnetArguments<T>& a_;
    const Place place_;
    Scratch<T> scratch_;
    Packed<T> z_, g_;
};

}  // namespace
