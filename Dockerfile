# For a CPU:  docker build -t pem-studio .
# For CUDA:   docker build -t pem-studio --build-arg TORCH_INDEX=https://pypi.org/simple .
# Run it:     docker run --rm -p 7860:7860 pem-studio        (with --gpus all where there is CUDA)
FROM python:3.12-slim

# Prototype attention is compiled when it is first needed.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 pem
WORKDIR /app

# The packages of PyPI bring 4 GB of libraries for GPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt requirements-metrics.txt ./
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -r requirements-metrics.txt

COPY app.py LICENSE README.md SECURITY.md ./
COPY pem pem
COPY ui ui
COPY analysis analysis
COPY assets assets

# Nobody in the container may change the code. Uploads lie in /tmp, compiled attention in the home folder.
USER pem
ENV PEM_HOST=0.0.0.0 PEM_PORT=7860 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 7860
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/health')"]
# Python itself gets SIGTERM, and finishes the running photo: docker stop --time 40
ENTRYPOINT ["python", "app.py"]
