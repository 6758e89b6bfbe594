"""The names of NVIDIA ModelOpt's pages; `jaxq.quant_utils` and `jaxq.int4` are the doors to them."""
