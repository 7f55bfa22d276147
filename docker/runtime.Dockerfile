# The runtime's images. Build them at the root of the checkout:
#   docker build -f docker/runtime.Dockerfile -t sluice-runtime:0.1.0 .
#   docker build -f docker/runtime.Dockerfile -t sluice-runtime:0.1.0-gpu --target gpu .
# npm ci compiles the kernels; the Node that runs is the one that package-lock.json pins, not the base image's.
FROM node:24.21.0-trixie-slim AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN npm ci && node scripts/build-image.ts runtime --root /image

# With the Vulkan loader, through which the GPU's driver is found: the container runtime puts the driver itself in place,
# with its Vulkan part only where `graphics` is among the capabilities.
FROM debian:trixie-20251117-slim AS gpu
RUN apt-get update \
  && apt-get install --yes --no-install-recommends libvulkan1 libx11-6 libxext6 libegl1 \
  && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/* \
  && mkdir --parents /cache /home/sluice
COPY --from=build /image/app/ /app/
COPY --from=build /image/usr/local/bin/node /usr/local/bin/node
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
ENV NODE_ENV=production HOME=/home/sluice
USER 65532:65532
WORKDIR /app
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/node", "/app/dist/runtime/cli/sluice.js"]

# The last one is what is built without --target.
FROM scratch AS cpu
COPY --from=build /image/ /
USER 65532:65532
WORKDIR /app
ENV NODE_ENV=production HOME=/home/sluice PATH=/usr/local/bin:/usr/bin:/bin
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/node", "/app/dist/runtime/cli/sluice.js"]
