"""Algorithm 1 of Fredrikson et al. 2015 (MI-FACE), line by line, on costs that are given and on softmax regression."""

import numpy as np


def stop(costs, alpha, beta, gamma):
    """Walks the costs c(x0), c(x1), ... of a path; returns how many steps were taken and the index of the least cost.

    gamma is the cost at which the descent is content. Before beta costs exist, their maximum is infinite. Where NaN is
    on either side of a comparison, nothing has improved.
    """
    path = [costs[0]]
    for step in range(1, alpha + 1):
        path.append(costs[step])
        window = path[:-1][-beta:]
        largest = np.max(window + [np.inf] * (beta - len(window)))
        if not path[-1] < largest or path[-1] <= gamma:
            break
    least = 0
    for index, cost in enumerate(path):
        if cost < path[least]:
            least = index
    return len(path) - 1, least


def invert_softmax_regression(kernel, bias, target, start, learning_rate, alpha, beta, gamma):
    """(flat picture [F], its cost, steps) for logits = x @ kernel [F, K] + bias [K], pictures cut to [-1, 1]."""

    def probabilities(picture):
        logits = picture @ kernel + bias
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    pictures = [np.asarray(start, np.float64)]
    for _ in range(alpha):
        found = probabilities(pictures[-1])
        # d p_t / d x = p_t (w_t - sum_k p_k w_k), and the cost is 1 - p_t.
        slope = -found[target] * (kernel[:, target] - kernel @ found)
        pictures.append(np.clip(pictures[-1] - learning_rate * slope, -1, 1))
    costs = [1 - probabilities(picture)[target] for picture in pictures]
    steps, least = stop(costs, alpha, beta, gamma)
    return pictures[least], costs[least], steps
