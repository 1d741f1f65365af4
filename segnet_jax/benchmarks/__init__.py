"""Throughput, timing, rooflines, and portability."""
