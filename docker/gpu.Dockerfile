# cdga segment, verify and info on an NVIDIA GPU with ONNX Runtime (CUDA) or TensorRT. From the repository's root:
#   docker build -f docker/gpu.Dockerfile -t cdga:gpu .
# CUDA and cuDNN come from the base image, in the versions that onnxruntime-gpu links; TensorRT comes with pip.

FROM ubuntu:24.04 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY cdga_sdk cdga_sdk
COPY train train
COPY export export
# The wheel for desktops is replaced: it wants libGL of the system.
RUN python3 -m venv /opt/cdga \
    && /opt/cdga/bin/pip install --no-cache-dir '.[trt]' \
    && /opt/cdga/bin/pip uninstall --yes opencv-python \
    && /opt/cdga/bin/pip install --no-cache-dir opencv-python-headless

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# /cache is for TensorRT engines, of whichever user runs the container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home cdga \
    && mkdir --mode=1777 /cache
COPY --from=build /opt/cdga /opt/cdga
ENV CDGA_CACHE=/cache
USER cdga
WORKDIR /work
ENTRYPOINT ["/opt/cdga/bin/cdga"]
