# docker build -t ltcompile .
# docker run --rm --gpus all -v "$PWD/runs:/srv/runs" ltcompile find --model vgg16 --rewind lr
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv g++ python3-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 ltcompile

WORKDIR /opt/ltcompile
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY models models
COPY kernels kernels
COPY ltcompile ltcompile
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt . \
 && mkdir -p /srv/runs && chown -R ltcompile /srv

USER ltcompile
WORKDIR /srv
HEALTHCHECK --interval=5m --timeout=60s CMD ["/opt/venv/bin/ltcompile", "doctor"]
ENTRYPOINT ["/opt/venv/bin/ltcompile"]
CMD ["--help"]
