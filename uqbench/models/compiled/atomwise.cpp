// What the functions of each atom's channels export to `atomwise.py`.

#include "atomwise.hpp"

#define CALL(FUNCTION, ARGUMENTS, NAME, T)                                 \
    extern "C" int FUNCTION##_##NAME(const ARGUMENTS<T>* a) {              \
        return status_of([&] { FUNCTION<T>(*a); });                        \
    }

#define EXPORT(NAME, T)                                \
    CALL(activation, ActivationArguments, NAME, T)     \
    CALL(mix_message, MixArguments, NAME, T)           \
    CALL(mix_pullback, MixArguments, NAME, T)          \
    CALL(mix_second, MixArguments, NAME, T)            \
    CALL(norm, MixArguments, NAME, T)

EXPORT(float32, float)
EXPORT(float64, double)
