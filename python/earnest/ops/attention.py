# SPDX-License-Identifier: Apache-2.0
def attention(*args, **kwargs):
    raise NotImplementedError
