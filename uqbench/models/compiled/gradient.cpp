// What the derivatives of the compiled networks export to `engine.py`.

#include "gradient_painn.hpp"

extern "C" void gradient_painn_float32(EngineArguments<float>* a) { differentiate<float, PainnGradient<float>>(*a); }
extern "C" void gradient_painn_float64(EngineArguments<double>* a) { differentiate<double, PainnGradient<double>>(*a); }
