// What the derivatives of the compiled networks export to `engine.py`.

#include "engine_painn.hpp"
#include "engine_schnet.hpp"

#define EXPORT(NAME, T)                                                                                            \
    extern "C" void gradient_painn_##NAME(EngineArguments<T>* a) { evaluate<Dual<T>, PainnEngine>(*a); }           \
    extern "C" void gradient_schnet_##NAME(EngineArguments<T>* a) { evaluate<Dual<T>, SchnetEngine>(*a); }

EXPORT(float32, float)
EXPORT(float64, double)
