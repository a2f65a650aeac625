// What the evaluation without autograd exports to `engine.py`.

#include "engine_painn.hpp"
#include "engine_schnet.hpp"

#define EXPORT(NAME, T)                                                                                       \
    extern "C" void engine_painn_##NAME(EngineArguments<T>* a) { each_member<T, PainnEngine<T>>(*a); }       \
    extern "C" void engine_schnet_##NAME(EngineArguments<T>* a) { each_member<T, SchnetEngine<T>>(*a); }

EXPORT(float32, float)
EXPORT(float64, double)
