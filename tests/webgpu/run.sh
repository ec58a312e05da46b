#!/usr/bin/env bash
# The tests of the WebGPU provider: on the card of this machine, or on a software device. Called by `make test-webgpu`.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! compgen -G "/dev/dri/renderD*" > /dev/null && [ "$(uname)" = Linux ]; then
  [ -f build/webgpu/vulkan/activate ] || bash tests/webgpu/software_vulkan.sh build/webgpu/vulkan build/webgpu/env
  # shellcheck disable=SC1091
  . build/webgpu/vulkan/activate
fi
exec build/webgpu/env/bin/python -m pytest tests/webgpu "$@"
