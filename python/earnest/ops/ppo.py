# SPDX-License-Identifier: Apache-2.0
class PPOLoss: ...


def gae(*args, **kwargs):
    raise NotImplementedError


def ppo_loss(*args, **kwargs):
    raise NotImplementedError
