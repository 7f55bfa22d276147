# The operator's image. Build it at the root of the checkout:
#   docker build -f docker/operator.Dockerfile -t sluice-operator:0.1.0 --build-arg SOURCE_DATE_EPOCH=0 .
FROM node:24.21.0-trixie-slim AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN npm ci && node scripts/build-image.ts operator --root /image

FROM scratch
COPY --from=build /image/ /
USER 65532:65532
WORKDIR /app
ENV NODE_ENV=production HOME=/home/sluice PATH=/usr/local/bin:/usr/bin:/bin
EXPOSE 8080 8081
ENTRYPOINT ["/usr/local/bin/node", "/app/dist/operator/cli/sluice-operator.js"]
