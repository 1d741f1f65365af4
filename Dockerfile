# Two images: `gpu` for NVIDIA GPUs of compute capability 7.5 and newer, `v100` for Volta.
#
#   docker build --target gpu  -t segnet .
#   docker build --target v100 -t segnet:v100 .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v /my/CamVid:/data:ro -v /my/runs:/runs segnet \
#       python -m segnet_jax.train --data /data --protocol camvid-matlab-2018 --devices 8 --run /runs/a
#
# The host brings the driver and the NVIDIA container toolkit, no CUDA: the wheels below carry CUDA, cuDNN and NCCL.
# What was tried of this file and what was not: experiments/clusters/p3.md.

# NVIDIA's JAX image from NGC would be the base if its version served: that of 26.07, the newest of which it was found
# what is in it, has a JAX built before 0.10.2 was released, which pyproject.toml asks for, and CUDA 13, which has
# dropped the V100. Python's own image, slim since nothing is compiled here, with JAX's wheels has what the tests run with:
# Python 3.11, and of the four libraries that the numbers depend on the oldest versions that pyproject.toml allows.
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    SEGNET_JAX_CACHE=/cache
# A number of its own, so that mounted folders can be given to it: chown 10001 /my/runs, or start with --user.
RUN useradd --uid 10001 --user-group --create-home segnet \
    && mkdir --mode=1777 /cache /data /runs
WORKDIR /opt/segnet_jax
COPY pyproject.toml README.md LICENSE ./
COPY segnet_jax ./segnet_jax

# CUDA 13, as NVIDIA's own images have it; for a driver older than 580 write cuda12.
FROM base AS gpu
# The package itself has no version to be pinned by.
# hadolint ignore=DL3013
RUN python -m pip install ".[cuda13]" jax==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8
USER 10001:10001
WORKDIR /runs
VOLUME ["/cache", "/data", "/runs"]
CMD ["python", "-m", "segnet_jax.train", "--help"]

# CUDA 12 and cuDNN 9.10.2, the last that serve compute capability 7.0: the extra v100 holds the pins.
FROM base AS v100
# The package itself has no version to be pinned by.
# hadolint ignore=DL3013
RUN python -m pip install ".[v100]" jax==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8
USER 10001:10001
WORKDIR /runs
VOLUME ["/cache", "/data", "/runs"]
CMD ["python", "-m", "segnet_jax.train", "--help"]
