"""Benchmarks: throughput, timing, roofline and portability."""
