# SPDX-License-Identifier: Apache-2.0
def logprob(*args, **kwargs):
    raise NotImplementedError
