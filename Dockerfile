# A server of one's own:
#   docker build -t qlora-space .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v qlora-space:/data qlora-space
# Without a GPU leave --gpus out, and build a fifth of the size with
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
FROM python:3.12-slim-bookworm

# Triton compiles small pieces of C when a kernel is first launched.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 server \
    && install -d -o server -g server /data

WORKDIR /app
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt requirements.txt requirements-platform.txt ./
# The libraries first: they change seldom, and a changed source does not install them anew.
RUN pip install --no-cache-dir -c constraints.txt -r requirements.txt -r requirements-platform.txt
COPY pyproject.toml README.md LICENSE ./
COPY qlora_space ./qlora_space
RUN pip install --no-cache-dir -c constraints.txt ".[app]"

USER 1000
ENV GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    QLORA_SPACE_HOME=/data/qlora-space
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=60s --start-period=120s \
    CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 7860), 5)"]
CMD ["qlora-space", "app"]
