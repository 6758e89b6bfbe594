"""The functions of two pages of NVIDIA ModelOpt, on jaxq's maths; import them from `jaxq.quant_utils` and `jaxq.int4`.

Page ``quant_utils``: `integers`, `nvfp4`, `mx_exponents`, `packing` and `precision`.
Page ``int4``: `quantize` (whole models, with `quantize_options`, `weight_rules` and `calibration_reader`);
`short_calls` (the integer functions); `awq_scales` and `awq_helpers` (AWQ on arrays); `wa_packs`, `search_per_node` and
`search_per_subgraph` (AWQ on the weights of a model).
"""
