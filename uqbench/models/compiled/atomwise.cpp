// What the functions of each atom's channels export to `atomwise.py`.

#include "atomwise.hpp"

#define EXPORT(NAME, T)                                                                                          \
    extern "C" void activation_##NAME(const ActivationArguments<T>* a) { activation<T>(*a); }                    \
    extern "C" void mix_message_##NAME(const MixArguments<T>* a) { mix_message<T>(*a); }                         \
    extern "C" void mix_pullback_##NAME(const MixArguments<T>* a) { mix_pullback<T>(*a); }                       \
    extern "C" void mix_second_##NAME(const MixArguments<T>* a) { mix_second<T>(*a); }                           \
    extern "C" void norm_##NAME(const MixArguments<T>* a) { norm<T>(*a); }

EXPORT(float32, float)
EXPORT(float64, double)
