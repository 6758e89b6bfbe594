"""What `jaxq.int4` is made of: helper classes, searches on packs, and quantization of whole models."""
