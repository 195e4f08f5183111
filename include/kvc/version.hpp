// The version of this library. The build system parses the three numbers from this file, so they are written only here.
#pragma once

#define KVC_VERSION_MAJOR 0
#define KVC_VERSION_MINOR 1
#define KVC_VERSION_PATCH 0

#define KVC_DETAIL_STRINGIFY_TOKEN(x) #x
#define KVC_DETAIL_STRINGIFY(x) KVC_DETAIL_STRINGIFY_TOKEN(x)

/// "major.minor.patch"
#define KVC_VERSION_STRING                \
  KVC_DETAIL_STRINGIFY(KVC_VERSION_MAJOR) \
  "." KVC_DETAIL_STRINGIFY(KVC_VERSION_MINOR) "." KVC_DETAIL_STRINGIFY(KVC_VERSION_PATCH)
