# cdga segment, verify and info on a CPU. From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t cdga:cpu .

FROM python:3.12.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY cdga_sdk cdga_sdk
COPY train train
COPY export export
# The wheels for desktops and for GPUs are replaced: one wants libGL of the system, the other is twice as large.
RUN python3 -m venv /opt/cdga \
    && /opt/cdga/bin/pip install --no-cache-dir '.[openvino]' \
    && /opt/cdga/bin/pip uninstall --yes opencv-python onnxruntime-gpu onnxruntime \
    && /opt/cdga/bin/pip install --no-cache-dir opencv-python-headless onnxruntime

FROM python:3.12.11-slim-bookworm
RUN useradd --create-home cdga
COPY --from=build /opt/cdga /opt/cdga
USER cdga
WORKDIR /work
ENTRYPOINT ["/opt/cdga/bin/cdga"]
